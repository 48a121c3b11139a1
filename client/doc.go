// Package client uses exports of NBD servers.
//
// # Concepts
//
// [Dial] takes an NBD URI, connects, negotiates the best that both sides know
// (TLS, extended headers or structured replies, block sizes, metadata contexts)
// and returns a [Conn]. Many goroutines may use one Conn at a time: their
// requests travel together and are answered in any order.
//
// A Conn is a [block.Backend], so that everything that works on a block.Device
// works on a remote disk:
//
//	conn, err := client.Dial(ctx, "nbd://example.com/disk", nil)
//	…
//	dev, err := block.New(conn)
//
// The Device is also the comfortable way to read and write: Conn itself wants
// every offset and length to be a multiple of the server's minimum block size,
// and sends only what the server has offered, while a Device reads, modifies and
// writes, and emulates what can be emulated. Both split what is longer than the
// server takes at a time.
//
// # Errors
//
// What the server refuses is an [*Error]; the connection lives on. What breaks
// the connection is transmission.ErrConnectionLost, for all that was under way
// and for all that follows: whether a change under way has happened is then
// unknown. A Conn never connects again by itself, because the disk behind the
// name may be another one by then.
//
// # Contexts
//
// All methods take a context. When it ends they return at once, and the
// caller's buffer is free again; a change may still happen on the server.
//
// # TLS
//
// A scheme that begins with "nbds", or [Config].TLS, demands TLS: the connection
// fails if the server refuses it, and nothing else is said in clear. The server's
// certificate is verified against a name. Where there is none, as on a unix
// socket, the URI must give one (tls-hostname), or say that nothing is verified
// (tls-verify-peer=0): a certificate without a verified name proves nothing.
//
// # For tests of servers
//
// [DialRaw] negotiates and then leaves the transmission phase to the caller, who
// may send anything. Package handshake does the same for the negotiation.
package client
