// Package transmission is the phase in which data moves: the server's engine,
// and the client's demultiplexer.
//
// # Concepts
//
// After the handshake a client sends requests, each with a cookie of its own
// choice, and the server answers them in any order. How answers look was agreed
// on: simple replies, structured replies in chunks, or extended ones.
//
// [Serve] is the server's side of one connection. What it may do for the client
// is in a [Session]: the device, the flags that the client was told, the metadata
// contexts that it chose. What the client may make it do is in a [Config]: bounds
// on requests, memory and time.
//
// # How Serve works
//
// The goroutine that calls Serve reads requests, many at a time, and answers at
// once what the device has at hand ([block.Direct]): bytes in memory, writes that
// the page cache takes, stretches of a file that the socket takes by itself. All
// else goes to workers, goroutines that exist while there is work. Answers
// gather until there is nothing more to read, and leave with one system call.
// A socket that is full is nobody's problem but that of one goroutine that waits
// for it; requests are read meanwhile, up to the bounds. A connection at rest
// holds no buffer.
//
// On Linux, TCP and unix sockets are used by system calls of our own. Every other
// [net.Conn] (TLS, pipes, other systems) is read and written as a stream, with
// the same engine.
//
// # Order
//
// Connections that share a device share a [Group]. Changes (writes, trims,
// zeroes) of one byte range are carried out in the order in which they came in
// whole, on whichever connection; others run side by side. And before changes of
// a connection begin, those of siblings whose peer has hung up have ended: a
// client that comes back and sends again what it had no answer to must not find
// the old copy on top of newer data.
//
// A flush is answered when all that was answered before it, on any connection
// of the group, is stable. proto.md, "Ordering of messages and writes".
//
// # Failure
//
// A request that fails is answered with one of the eight error numbers of the
// protocol, and with structured replies with a text and, if the device says, the
// place. A reply that has begun and cannot be finished ends the connection: with
// a simple reply the protocol has no other way. A panic ends its connection, and
// no other. A client that hangs up has what it sent carried out, and not
// answered.
//
// # The client
//
// [Demux] is the other side: it sends requests of many goroutines over one
// connection, and brings each answer to who waits for it.
package transmission
