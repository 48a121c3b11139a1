// Package nbd is the root of a server, a kernel client and a library for the NBD
// protocol, which lets any machine use a disk that lives on another one. This
// package holds no code: it is the map of the others.
//
// # Which package do I need?
//
//   - To serve a file, a device or memory without writing code: the program in
//     cmd/nbd-server.
//   - To serve bytes of your own from a Go program: write a block.Backend, give
//     it to block.New, and hand the device to package server.
//   - To change bytes on their way (delay, encrypt, restrict): write a
//     block.Layer.
//   - To use an export from a Go program: package client. A connection is itself
//     a block.Backend, so that it can be served again, or sit below a layer.
//   - To have an export as /dev/nbd0, and keep it: the program in cmd/nbd-client,
//     or package supervise; package kernel to tell the kernel yourself.
//   - To look at the protocol on the wire, or to test a peer step by step:
//     packages proto and handshake.
//
// # The map
//
// Requests enter at the top of this table and leave as bytes at the bottom. A
// package imports only what its row names, besides the standard library; a test
// in internal/archtest reads the imports and fails on any other arrow.
//
//	package           is                                                           imports
//	proto             the wire: every constant once, one codec for each message    nothing, and no net
//	uri               NBD URIs                                                     nothing
//	handshake         option haggling, both sides, one file for each option        proto
//	block             the seam: Backend, Caps, Extent, Device, Layer               internal
//	block/blocktest   the suite that every back end and every layer passes         block
//	transmission      the transmission phase: the engine, groups of connections    proto, block, internal
//	client            a connection to a server; is itself a block.Backend          handshake, transmission, proto, uri, block
//	server            listeners, connections, TLS modes, rules, table of exports   handshake, transmission, proto, block
//	backend/…         where bytes live: file, memory, multi, tree, null, pattern   block, internal
//	layer/…           what changes them on the way: cow, readonly, partition …     block, internal
//	chain             text, "memory:1G | cow", to a stack of the above             block
//	chain/core        the usual elements of chains                                 chain, block, backend/…, layer/…
//	kernel            /dev/nbdX: the kernel's driver, and what the system shows    proto, internal
//	supervise         keeps kernel devices attached                                kernel, client, handshake, transmission, proto, uri
//	cmd/…             programs: flags and wiring                                   everything
//	internal/…        configuration files, test gates, these rules                 internal
//	test/…            the built programs against real peers and bad ones           everything
//
// # How a request travels
//
// A listener of package server accepts a connection. Package handshake haggles
// with the client until both agree on an export; the export's Open gives a
// block.Device. Package transmission then reads requests by the buffer, asks
// the device for an answer without waiting where that is possible, hands the rest
// to workers, and writes the replies of a whole batch at once. The device checks
// the range, emulates what the back end lacks, and calls the layer below, which
// holds the next device; the last one is the back end.
//
// # Glossary
//
// The words are those of the specification, proto.md and uri.md of the NBD
// project, wherever it has one.
//
//   - back end: where bytes live, a block.Backend with nothing below it.
//   - block size: the unit that a client must keep to (minimum), should keep to
//     (preferred) and must not exceed in one payload (maximum), in bytes.
//   - chunk: one message of a structured reply. The last one carries
//     NBD_REPLY_FLAG_DONE.
//   - cookie: the 8 bytes by which a client tells replies apart. Older texts call
//     it "handle".
//   - device: a block.Device. What Linux calls /dev/nbd0 is a "kernel device".
//   - effect length: the length of a request without payload, such as a trim.
//   - export: what is served under one name; the empty name is the default export.
//   - extended headers: requests and replies with 64-bit lengths.
//   - extent: a stretch of an export with one state (data, hole, zero).
//   - fixed newstyle: the handshake in which a refused option does not end the
//     connection. All but museum pieces speak it.
//   - FUA: force unit access; the reply waits until the data is stable.
//   - group: the connections that share a device.
//   - haggling, option haggling: the phase after the greeting, in which the client
//     sends options (NBD_OPT_…) and the server answers each.
//   - hole: an extent that takes no room; also the chunk that says so.
//   - layer: a back end that stands on another device.
//   - meta context, metadata context: a named kind of extent information, for
//     example base:allocation.
//   - option: what a client asks for while haggling; not a command-line option.
//   - seam: package block, the border between the protocol and the bytes.
//   - stable: will be there after a power cut.
//   - structured reply: a reply in chunks, which can carry holes and texts of
//     errors; a simple reply is the older kind.
//   - transmission phase: after haggling: requests and replies.
package nbd
