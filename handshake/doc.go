// Package handshake is the first phase of an NBD connection, both sides of it:
// option haggling, in which client and server settle which export is used and how.
//
// # Concepts
//
// The server greets with its handshake flags and the client answers with its
// own. If both know "fixed newstyle", the client then sends one option after
// the other, and the server answers each with replies: any number that carry
// something, then one that ends the answer, NBD_REP_ACK or an error. An error
// refuses one option; haggling goes on behind it. Options are of three kinds:
//
//   - questions that change nothing: LIST, INFO, LIST_META_CONTEXT;
//   - agreements for later: STRUCTURED_REPLY, EXTENDED_HEADERS and
//     SET_META_CONTEXT, and STARTTLS, which upgrades the connection to TLS and
//     makes both sides forget every agreement made in clear before it;
//   - the end: GO (or the older EXPORT_NAME, which can report no errors) chooses
//     the export and begins the transmission phase, ABORT gives up.
//
// A client of plain newstyle, the form before "fixed", knows EXPORT_NAME only.
//
// Before all that, there was oldstyle: the server says how large its one export
// is, and the transmission phase begins. Each half speaks it only where it is told
// to ([Server.NegotiateOldstyle], [Setup].Oldstyle).
//
// # The server's half
//
// A [Server] is told how to list and open exports and which [TLSMode] it is in,
// and [Server.Negotiate] runs one connection up to the transmission phase. An
// export is opened at the first option that needs it and kept while the client
// goes on naming it, so that what INFO told is what GO serves.
//
// # The client's half
//
// A [Client] is driven step by step, one method for each option, or by
// [Client.Negotiate], which takes the usual way. An option that the server
// refused gives a [*ReplyError], and the next step may be tried; any other error
// ends the connection.
//
// # What is shared
//
// Each option has a file of its own, opt_….go, with the server's half of it and
// the client's. Everything that goes over the wire can be watched, as typed
// values, with a Trace function (see [Event]). A context bounds every wait: its
// deadline becomes the connection's, its cancellation wakes whoever waits.
// Neither side takes memory because its peer announced a length.
//
// Section names in comments are headings of the protocol's specification,
// proto.md, and of its extension for extended headers.
package handshake
