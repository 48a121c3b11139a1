package handshake

import (
	"context"
	"fmt"
	"strings"

	"nbd.example/nbd/proto"
)

// listMetaContext answers NBD_OPT_LIST_META_CONTEXT. No query lists everything;
// a query that ends in a colon lists all names that begin with it, which is the
// wildcard that the specification prescribes for "base:" and recommends for
// other namespaces. proto.md, "Option types", NBD_OPT_LIST_META_CONTEXT.
func (s *session) listMetaContext() error {
	e, queries, err := s.metaContextQuery()
	if e == nil || err != nil {
		return err
	}
	for _, name := range e.Contexts {
		if len(queries) > 0 && !matches(name, queries, true) {
			continue
		}
		// The id is reserved here.
		s.scratch = proto.AppendMetaContext(s.scratch[:0], &proto.MetaContext{Name: name})
		if err := s.reply(proto.RepMetaContext, s.scratch); err != nil {
			return err
		}
	}
	return s.ack()
}

// metaContextQuery reads what LIST_ and SET_META_CONTEXT have in common. Where
// the option has been refused already, the export is nil.
func (s *session) metaContextQuery() (*Export, []string, error) {
	if s.option.tooBig {
		return nil, nil, s.refuseBig()
	}
	req, err := proto.ParseMetaContextRequest(s.option.data)
	if err != nil {
		return nil, nil, s.refuse(proto.RepErrInvalid, "%v", err)
	}
	if !s.agreed.structured && !s.agreed.extended {
		// Also for LIST: what depends on chunks is not to be advertised without
		// them. proto.md, NBD_OPT_STRUCTURED_REPLY.
		return nil, nil, s.refuse(proto.RepErrInvalid, "metadata contexts need structured replies or extended headers, which are to be agreed on first")
	}
	for _, q := range req.Queries {
		if strings.IndexByte(q, ':') <= 0 {
			return nil, nil, s.refuse(proto.RepErrInvalid, "metadata context %.80q has no namespace", q)
		}
	}
	e, err := s.open(req.Export)
	if err != nil {
		return nil, nil, s.refuseError(err)
	}
	return e, req.Queries, nil
}

func matches(name string, queries []string, wildcards bool) bool {
	for _, q := range queries {
		if wildcard := strings.HasSuffix(q, ":"); !wildcard && q == name ||
			wildcard && wildcards && strings.HasPrefix(name, q) {
			return true
		}
	}
	return false
}

// ListMetaContext asks which metadata contexts an export has: all of them
// without queries, else those that match one ("base:" matches the whole
// namespace). A name that the server gives may be a pattern that only its
// namespace explains.
func (c *Client) ListMetaContext(ctx context.Context, export string, queries ...string) ([]string, error) {
	all, err := c.metaContext(ctx, proto.OptListMetaContext, export, queries)
	var names []string
	for _, m := range all {
		names = append(names, m.Name)
	}
	return names, err
}

// metaContext is what LIST_ and SET_META_CONTEXT have in common.
func (c *Client) metaContext(ctx context.Context, o proto.Option, export string, queries []string) ([]proto.MetaContext, error) {
	if !c.structured && !c.extended {
		return nil, c.misuse(o, "neither structured replies nor extended headers are agreed on")
	}
	for _, s := range append([]string{export}, queries...) {
		if err := proto.CheckString([]byte(s)); err != nil {
			return nil, c.misuse(o, fmt.Sprintf("%.80q cannot be sent", s))
		}
	}
	var all []proto.MetaContext
	data := proto.AppendMetaContextRequest(nil, &proto.MetaContextRequest{Export: export, Queries: queries})
	err := c.step(ctx, o, data, func(r proto.OptionReply, data []byte) error {
		if r != proto.RepMetaContext {
			return errMisplaced
		}
		m, err := proto.ParseMetaContext(data)
		all = append(all, m)
		return err
	})
	if err != nil {
		return nil, err // contexts that came before an error do not count
	}
	return all, nil
}
