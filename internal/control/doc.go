// Package control is how a running server is looked at and changed: a protocol
// on a unix socket, with a server's half ([Serve]) and a client's ([Client]).
//
// # The protocol
//
// A client sends a [Request], a JSON object on a line of its own, and gets a
// [Response] in one line, then sends the next. The version is that of the protocol;
// a server refuses requests of a version that it does not know, and fields
// that it does not know, rather than do half of what was meant. Lines are bounded,
// on both sides. A client may send requests ahead; they are carried out one after
// the other.
//
// # Who may
//
// Whoever can connect can do everything: serve any file that the server can open, and
// close every connection. [Listen] makes the socket for its owner alone (mode 0600).
// To let others in, change its mode and group behind the server's start, put it into
// a folder that others can reach and give it their group, or have systemd make it
// (SocketMode, SocketGroup), and pass it by the name of control.
package control
