//go:build !linux

package relay

import (
	"errors"
	"net"
	"os"
)

// Relay passes bytes between a connection and the kernel. Here no kernel has an NBD
// driver, so there are none.
type Relay struct{}

// New fails: there is no kernel device to relay for.
func New(net.Conn, []byte) (*Relay, error) { return nil, errors.ErrUnsupported }

// Kernel returns nil.
func (r *Relay) Kernel() *os.File { return nil }

// Done returns nil.
func (r *Relay) Done() <-chan struct{} { return nil }

// Err returns nil.
func (r *Relay) Err() error { return nil }

// Drop does nothing.
func (r *Relay) Drop() {}

// Close does nothing.
func (r *Relay) Close() error { return nil }
