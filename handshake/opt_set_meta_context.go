package handshake

import (
	"context"
	"errors"

	"nbd.example/nbd/proto"
)

// setMetaContext answers NBD_OPT_SET_META_CONTEXT. The earlier choice is gone
// already (see answer). Only full names choose; others, and unknown ones, are
// ignored. proto.md, "Option types", NBD_OPT_SET_META_CONTEXT.
func (s *session) setMetaContext() error {
	e, queries, err := s.metaContextQuery()
	if e == nil || err != nil {
		return err
	}
	var chosen []proto.MetaContext
	for i, name := range e.Contexts {
		if !matches(name, queries, false) {
			continue
		}
		c := proto.MetaContext{ID: uint32(i + 1), Name: name}
		chosen = append(chosen, c)
		s.scratch = proto.AppendMetaContext(s.scratch[:0], &c)
		if err := s.reply(proto.RepMetaContext, s.scratch); err != nil {
			return err
		}
	}
	s.agreed.contexts, s.agreed.contextsOf = chosen, s.exportName
	return s.ack()
}

// SetMetaContext chooses metadata contexts of an export, by their full names,
// and forgets the earlier choice, also if it fails. Contexts that the server
// does not have are missing in the result. The choice holds for the transmission
// phase only if that is begun with the same export name.
func (c *Client) SetMetaContext(ctx context.Context, export string, names ...string) ([]proto.MetaContext, error) {
	all, err := c.metaContext(ctx, proto.OptSetMetaContext, export, names)
	if !errors.Is(err, ErrState) {
		c.forgetContexts()
	}
	if err != nil {
		return nil, err
	}
	seen := map[uint32]bool{}
	for _, m := range all {
		if seen[m.ID] {
			return nil, c.broken(violation("two metadata contexts with the id %d", m.ID))
		}
		seen[m.ID] = true
	}
	c.contexts, c.contextsOf = all, export
	return all, nil
}
