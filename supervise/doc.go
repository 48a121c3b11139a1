// Package supervise keeps kernel devices attached.
//
// The kernel lets an attached device wait while its connections are dead, but it does
// not make new ones. A [Supervisor] does: it dials, negotiates, compares what the
// server says with what it said at first, and hands the new sockets over.
package supervise
