// Package vsocket listens on vsock and connects by it: the sockets between a
// virtual machine and its host, which need no network. Only Linux has them here;
// elsewhere all is errors.ErrUnsupported.
//
// An address is the number of a context (a machine) and a port, each of 32 bits:
// 2 is the host, 1 the machine itself, and a virtual machine has the number that
// its host gave it.
package vsocket

import (
	"fmt"
	"strconv"
	"strings"
)

// Any is the context that stands for all of this machine's own.
const Any = 1<<32 - 1

// Addr is the address of one end of a connection, or of a listener.
type Addr struct {
	Context uint32
	Port    uint32
}

// Network returns "vsock".
func (a Addr) Network() string { return "vsock" }

// String returns the form CID:PORT, with * for any context.
func (a Addr) String() string {
	if a.Context == Any {
		return fmt.Sprintf("vsock:*:%d", a.Port)
	}
	return fmt.Sprintf("vsock:%d:%d", a.Context, a.Port)
}

// CID returns the context.
func (a Addr) CID() uint32 { return a.Context }

// Parse reads CID:PORT. An empty CID is Any.
func Parse(s string) (Addr, error) {
	cid, port, ok := strings.Cut(s, ":")
	if !ok {
		return Addr{}, fmt.Errorf("vsock address %.80q: want CID:PORT", s)
	}
	a := Addr{Context: Any}
	if cid != "" {
		n, err := strconv.ParseUint(cid, 10, 32)
		if err != nil {
			return a, fmt.Errorf("vsock address %.80q: the context is not a number below 2^32", s)
		}
		a.Context = uint32(n)
	}
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return a, fmt.Errorf("vsock address %.80q: the port is not a number below 2^32", s)
	}
	a.Port = uint32(n)
	return a, nil
}
