package supervise

import (
	"fmt"
	"slices"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
)

// standsIn is the error of Suits, or nil if who wants the device will see by its name that
// it is another one.
func (st *State) standsIn(spec *Spec) error {
	if i, err := kernel.ParseIndex(spec.Device); err == nil && i != st.Index {
		return nil
	}
	_, err := st.Suits(spec)
	return err
}

// Suits reports whether an attached device can stand in for one that spec wants. The error
// says why not: programs that want a device which cannot be written would write to it, or
// find no partitions, since those are counted in blocks. Otherwise ignored names what spec
// says and the device does not do; what spec leaves open is not compared.
func (st *State) Suits(spec *Spec) (ignored []string, err error) {
	readOnly := st.Flags&proto.FlagReadOnly != 0
	no := func(what string) error {
		return fmt.Errorf("%q is attached already, as %s, %s: detach it first, or attach it a second time with another identifier", st.Identifier, st.Device, what)
	}
	switch {
	case spec.ReadOnly && !readOnly:
		return nil, no("and can be written, which is not wanted")
	case !spec.ReadOnly && st.Spec.ReadOnly:
		return nil, no("read-only, which is not wanted")
	case spec.BlockSize != 0 && spec.BlockSize != st.BlockSize:
		return nil, no(fmt.Sprintf("with blocks of %d bytes and not of %d", st.BlockSize, spec.BlockSize))
	}
	was := &st.Spec
	for _, c := range []struct {
		name    string
		differs bool
	}{
		{"the servers", len(spec.URIs) > 0 && !slices.Equal(spec.URIs, was.URIs)},
		{"the chain", spec.Serve != "" && spec.Serve != was.Serve},
		{"the number of connections", spec.Connections != 0 && spec.Connections != was.Connections},
		{"the size", spec.Size != 0 && spec.Size != was.Size},
		{"the request timeout", spec.Timeout != 0 && spec.Timeout != was.Timeout},
		{"what happens on failure", spec.OnFailure != Policy{} && spec.OnFailure != was.OnFailure},
		{"the time for connecting", spec.ConnectTimeout != 0 && spec.ConnectTimeout != was.ConnectTimeout},
		{"TLS", spec.TLS != nil && (was.TLS == nil || *spec.TLS != *was.TLS)},
		{"any instance", spec.AnyInstance && !was.AnyInstance},
		{"swap", spec.Swap && !was.Swap},
		{"the negotiation by NBD_OPT_EXPORT_NAME", spec.ExportName && !was.ExportName},
		{"flags of the kernel", spec.Client&^was.Client != 0},
	} {
		if c.differs {
			ignored = append(ignored, c.name)
		}
	}
	return ignored, nil
}
