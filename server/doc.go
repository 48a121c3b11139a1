// Package server accepts connections and serves exports to them.
//
// # Concepts
//
// An [Export] describes what is served under one name: how its device is
// opened, who may use it, and what of the device's abilities is offered. A
// [Server] holds a table of exports. Each export's device is opened when the
// export enters the table and is shared by all its connections, unless the export
// is private: then each connection has a device of its own, opened only once the
// client has shown, by its address and by TLS where that is demanded, that it may
// use the export.
//
// A connection comes from a listener ([Server.Serve]) or from wherever the
// caller has it ([Server.ServeConn]: standard input under inetd, one end of a
// pipe in a test). It goes through two phases. In the handshake the client
// chooses an export; the connection then holds the export until it ends. In the
// transmission phase package transmission answers its requests. While it is at
// rest there, a connection costs one goroutine, and nothing of the handshake.
//
// # Access
//
// An export has three barriers. Its address [Rules]: a client that they keep
// out is told that there is no such export. TLS: with [Export.RequireTLS] a plain
// client is told to begin TLS first. The number of connections: one too many is
// refused with a reason. A connection counts from the moment that it first asks
// for the export until it ends or chooses another.
//
// # Reload
//
// [Server.Reload] takes over a whole new [Config], or nothing of it. What stays
// as it was keeps its device and its connections. What only changed its policy
// (rules, limits, what is offered) keeps its device; the new policy holds for
// new connections. What changed its settings cannot change under its clients:
// it refuses new connections until the old ones have gone, and then its device is
// closed and opened anew. See [Server.Reload] for what "takes over" means when
// two configurations want the same file.
//
// # Growth
//
// What is below a device may become larger, a file that is made longer for instance.
// The server looks whenever a client asks for the export, and at a reload. New clients
// are told the new size, and old ones may use it. A device becomes smaller only once
// nobody uses it.
//
// # Shutting down
//
// [Server.Shutdown] closes the listeners, refuses what is still in the
// handshake, lets each connection answer what it has read, and closes the
// devices last.
package server
