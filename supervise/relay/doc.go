// Package relay joins a connection that the kernel cannot use to one that it can.
//
// The kernel's NBD driver takes TCP sockets and unix stream sockets, and speaks in the
// clear. A TLS connection, or one over vsock, lives in a process. So the process makes a
// pair of unix sockets, gives one end to the kernel, and passes bytes between the other
// end and the connection: that is a [Relay].
//
//	kernel ⇄ socket ⇄ socket ⇄ Relay ⇄ TLS ⇄ server
//
// A relay does not look into what it passes on, but for the last request: whether it was
// NBD_CMD_DISC. Three things make it more than two copies.
//
// # Ends
//
// The end of either side reaches the other. Whatever the server sent before it ended its
// half is given to the kernel, and then the kernel sees the end of its socket, which for
// it is a dead connection. A connection that breaks (a reset, a damaged record, an end
// within one) ends for the kernel at once.
//
// When the kernel ends its half, it matters how. After NBD_CMD_DISC the server gets all
// that is left, and the end of the stream (close_notify), and some seconds to close. But
// a kernel that gives up a connection without NBD_CMD_DISC sends its requests again on
// another one. Whatever the relay still holds must not reach the server after that: it
// would be an old write on top of new ones. So that connection is reset, and what the
// relay holds is dropped. It looks out for this also while it cannot send since the
// server does not read; but then it does not know whether NBD_CMD_DISC is still to come, and
// goes on for these seconds. Who knows that the kernel was not told to disconnect calls
// [Relay.Drop] as soon as the kernel has given up the connection.
//
// # Memory
//
// A kernel device can be swap, or hold the root file system. So a relay allocates its
// buffers when it is made, and nothing for each request; crypto/tls takes 24 bytes each
// time it receives, which a process with a bounded heap can live with. What a relay holds
// is bounded by its buffers, twice [BufferSize], and by those of crypto/tls. Still, the memory that
// the process needs to run, and that of the TCP socket, which is not marked as one that
// memory depends on, can be what is missing: swap through a relay is best effort.
//
// # It cannot be adopted
//
// The keys of a TLS connection live in this process and die with it. When the process
// ends, or is replaced by a new version, the relay's connections end, and the next
// process makes new ones: a device behind a relay always reconnects, where one with plain
// sockets can be passed on.
//
// Kernel TLS would end that: the driver takes a TCP socket that does TLS by itself, which
// needs no relay, survives the process, and costs no copies. Its place is here, in front
// of [New]: a function that gets the keys of the connection, puts them into the socket,
// and returns that for the kernel, where kernel, cipher and version of TLS allow; what
// they do not allow, and what is not TCP, takes a relay.
package relay

import (
	"errors"
	"time"
)

// BufferSize is the size of a relay's buffer for each direction, in bytes.
const BufferSize = 128 << 10

// linger is how long the other side may take to end after one side has ended.
const linger = 5 * time.Second

// Why a relay has ended. Err wraps them.
var (
	// ErrDropped: the kernel gave up the connection, without NBD_CMD_DISC. It does so
	// when a request takes too long, and when a device is detached by force.
	ErrDropped = errors.New("the kernel gave up the connection")
	// ErrServerClosed: the server ended the connection in an orderly way, and the
	// kernel was still using it.
	ErrServerClosed = errors.New("the server closed the connection")
	// ErrStuck: one side ended, and the other one did not follow in time.
	ErrStuck = errors.New("the connection did not end in time")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the relay was closed")
)
