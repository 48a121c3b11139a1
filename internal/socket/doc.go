// Package socket has TCP connections that wait in a way that suits request and reply, in
// place of those of package net.
//
// Package net registers each socket with the runtime's poller, edge-triggered. That costs
// a server twice. While a goroutine is at work on what has come in, each further arrival
// wakes the thread that waits for all sockets, for nothing. And when a goroutine does
// wait, an arrival wakes two threads: the one that finds it, and another one that is to
// take its place in waiting.
//
// A [Conn] is in no poller while somebody is at work on it. Its reader may [Conn.Linger]:
// wait as a thread, in the kernel, for the moment in which the next request usually
// comes. Only then, or to wait for room to write, it is told to a poller, for one event.
// All Conns of a process share that poller, one thread, which lets those run that it has
// woken before it waits again.
//
// Unix sockets stay in package net's poller: measured, it does well where the system runs
// the two sides in turn on one processor. So do systems other than Linux, where [Own]
// changes nothing.
//
// Before all of that, a reader whose client asks one thing at a time looks for some
// microseconds whether the next one is there already ([Conn.Linger], [Unix.Linger]). With a
// client on the same machine it is; with others that is soon given up.
package socket
