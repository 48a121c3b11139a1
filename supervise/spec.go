package supervise

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"path/filepath"
	"slices"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/uri"
)

const (
	defaultConnectTimeout = 10 * time.Second
	// maxConnections is more than helps: each is a queue of the kernel's.
	maxConnections = 256
	// maxURIs bounds what one device may try.
	maxURIs = 64
)

// forEver is how long requests wait that shall wait for ever. The kernel multiplies it
// by up to 1,000, in a long.
func forEver() time.Duration {
	if bits.UintSize == 32 {
		return 20 * 24 * time.Hour
	}
	return 100 * 365 * 24 * time.Hour
}

// complete returns a copy of spec that is checked and names its identifier.
func (s *Spec) complete() (*Spec, error) {
	c := *s
	c.URIs = slices.Clone(s.URIs)
	switch {
	case len(c.URIs) == 0 && c.Serve == "":
		return nil, errors.New("attach: there is neither a server's URI nor a chain to serve")
	case len(c.URIs) > 0 && c.Serve != "":
		return nil, errors.New("attach: there is a server's URI and a chain to serve: give one of them")
	case len(c.URIs) > maxURIs:
		return nil, fmt.Errorf("attach: %d URIs, more than %d", len(c.URIs), maxURIs)
	case c.Connections < 0 || c.Connections > maxConnections:
		return nil, fmt.Errorf("attach: %d connections: give 1 to %d", c.Connections, maxConnections)
	case c.Bare && c.Size == 0:
		return nil, errors.New("attach: the size of an export is not known, if no server is asked for it")
	case c.Size < 0:
		return nil, fmt.Errorf("attach: a size of %d bytes", c.Size)
	case c.ConnectTimeout < 0 || c.OnFailure.Limit < 0:
		return nil, errors.New("attach: a negative time")
	}
	c.Connections = max(c.Connections, 1)
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = defaultConnectTimeout
	}
	if c.Device != "" {
		if _, err := kernel.ParseIndex(c.Device); err != nil {
			return nil, fmt.Errorf("attach: %w", err)
		}
	}
	return &c, c.identify()
}

// KnownAs returns the identifier, also where it is made up.
func (s *Spec) KnownAs() (string, error) {
	c, err := s.complete()
	if err != nil {
		return "", err
	}
	return c.Identifier, nil
}

// identify makes up the identifier where there is none.
func (s *Spec) identify() error {
	first := "serve:" + s.Serve
	for i, text := range s.URIs {
		u, err := uri.Parse(text)
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		if i == 0 {
			first = plainURI(u)
		}
	}
	if s.Identifier == "" {
		s.Identifier = first
	}
	if t := s.TLS; t != nil {
		for _, f := range []string{t.Cert, t.Key, t.CA} {
			if f != "" && !filepath.IsAbs(f) {
				return fmt.Errorf("attach: %q is not an absolute path, and another process may read it", f)
			}
		}
	}
	return nil
}

// kernelTimeout is what the kernel is told as the request timeout.
func (s *Spec) kernelTimeout() time.Duration {
	switch {
	case s.Timeout < 0:
		return 0
	case s.Timeout == 0:
		return DefaultTimeout
	}
	return wholeSeconds(s.Timeout)
}

// deadTimeout is what the kernel is told of how long requests wait for a connection.
func (p Policy) deadTimeout() time.Duration {
	switch {
	case p.Fail:
		return 0
	case p.Limit == 0 || p.Limit > forEver():
		return forEver()
	}
	return wholeSeconds(p.Limit)
}

func wholeSeconds(d time.Duration) time.Duration {
	return time.Duration(kernel.Seconds(d)) * time.Second
}

// geometry settles what the kernel is told of a device whose server said so much.
func (st *State) geometry(p *peer) error {
	e, spec := &p.export, &st.Spec
	if e.Size > math.MaxInt64 {
		return fmt.Errorf("peer sent an export size of %d bytes, over the limit of 2^63-1", e.Size)
	}
	st.Flags = kernelFlags(e.Flags, spec.ReadOnly)
	st.Size = int64(e.Size)
	if spec.Size > st.Size {
		return fmt.Errorf("the server's export has %d bytes, fewer than the %d that are wanted", e.Size, spec.Size)
	}
	if spec.Size > 0 {
		st.Size = spec.Size
	}
	least := int64(kernel.SectorSize)
	if e.BlockSizeTold {
		least = max(least, int64(e.BlockSize.Minimum))
	}
	switch st.BlockSize = spec.BlockSize; {
	case st.BlockSize == 0:
		st.BlockSize = least
	case st.BlockSize < least:
		return fmt.Errorf("the block size %d is below the server's minimum of %d bytes", st.BlockSize, least)
	}
	if st.BlockSize > kernel.MaxBlockSize {
		return fmt.Errorf("the server's minimum block size of %d bytes is more than the kernel takes", st.BlockSize)
	}
	// The kernel counts in sectors. It would show a block at the end that is not whole, and
	// fail whoever reads it, as udev does.
	st.Size = blocks(uint64(st.Size), st.BlockSize)
	if st.Size < st.BlockSize {
		return fmt.Errorf("the server's export has %d bytes, fewer than one block of %d", e.Size, st.BlockSize)
	}
	st.Timeout, st.DeadTimeout = spec.kernelTimeout(), spec.OnFailure.deadTimeout()
	st.Seen = Identity{Size: e.Size, Flags: e.Flags}
	st.meet(p)
	return nil
}

// maxPayload returns the most that a server takes in one request, in bytes; 0 if it does
// not say.
func maxPayload(p *peer) uint32 {
	if !p.export.BlockSizeTold {
		return 0
	}
	return p.export.BlockSize.MaxPayload
}

// meet notes who a server is.
func (st *State) meet(p *peer) {
	st.Seen.Peers = with(st.Seen.Peers, p.from.name, p.who)
	st.Seen.Names = with(st.Seen.Names, p.from.name, p.export.Name)
}

// with returns m and one entry more, in a map of its own, since others read the old one.
func with(m map[string]string, key, value string) map[string]string {
	if value == "" || m[key] == value {
		return m
	}
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

// several says how many connections the kernel may have.
func several(want int, flags proto.TransmissionFlags) int {
	if flags&proto.FlagCanMultiConn == 0 || flags&proto.FlagHasFlags == 0 {
		return 1
	}
	return want
}
