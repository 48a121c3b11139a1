// Package supervise keeps kernel devices attached.
//
// # Concepts
//
// The kernel's NBD driver speaks only the transmission phase, over sockets that it is
// given. When one dies it can let requests wait, and take another one in its place, but
// it makes none itself. A [Supervisor] does. It
//
//   - connects to a server, negotiates, and has the kernel attach a device
//     ([Supervisor.Attach]);
//   - sees connections die, makes new ones, compares what the server says with what it
//     said at first, and hands them over;
//   - enlarges the device when the server's export has grown ([Device.Resize]);
//   - detaches it, and waits until it is really gone ([Device.Detach]);
//   - remembers all this in files, so that another process can go on
//     ([Supervisor.Adopt]).
//
// One Supervisor may keep many [Device] values. There should be one for each process
// and [Config].Dir.
//
// # How a death is noticed
//
// The supervisor keeps a copy of each socket that the kernel has, and watches it for
// hang-ups, without reading. So it sees the server close, and also the kernel give a
// connection up (which shuts it down): after a request timeout, or a reply that it does
// not understand. The kernel's own message, which does not say which connection it was,
// is needed only for sockets that nobody but the kernel has.
//
// What the kernel gives up it sends elsewhere. So a dead connection is reset, and what
// the server has not received of it never arrives.
//
// # What must be the same
//
// A server that comes back may have something else: an empty disk in memory, a fresh
// copy-on-write layer, another export. Below a mounted file system that would destroy
// it. So the new connection's export must be no smaller, not read-only if it was not,
// offer the flags that the kernel was told of, have the same name if the server told
// one, prove the same identity by TLS, and be the same instance, on servers that name
// it (proto.ContextInstance). Whatever differs is refused: the device waits, as it does
// without a server, its [State] says why, and the supervisor goes on trying.
//
// The instance can be asked for only with structured replies, which the kernel does not
// know. So it is asked for on a second connection, which is closed again: at the attach,
// and at each reconnect after those for the kernel were made. If those are still alive
// then, the answer is about the same server. A server that does not answer at the attach,
// because it takes only one client or a packet was lost, is asked again now and then. Until
// it answers the device works as well, but nobody notices a replaced disk.
//
// # What happens to requests
//
// Requests that the kernel has not sent wait for a new connection, as long as
// [Policy] says, and are sent at once when there is one. Those that were sent already
// get no answer any more. The kernel looks at them when the request timeout is over,
// counted from when they were sent, and sends them again; see [DefaultTimeout] for the
// choice.
//
// With [Policy].Fail or a limit, requests fail. The device is not lost: when there is a
// connection again, it works again.
//
// # Another process
//
// Each device has a file in [Config].Dir. It holds what was asked for, what the server
// said, and which process keeps the device. A process that has ended is told from one
// that runs by the time of its start. A device that somebody else has detached, perhaps to
// attach something else, is told by the identifier that the kernel shows, and no longer
// touched. What a process kept can be taken over in four ways:
//
//   - It replaces itself by a newer program ([Supervisor.Reexec]), which inherits the
//     sockets ([Inherit]).
//   - Another process asks it for them ([Supervisor.TakeOver]), and says when it has them: one that
//     ends before has taken nothing.
//   - The service manager keeps copies of them ([Store], [SystemdStore]), and gives them
//     to whoever it starts next ([Inherit]): also after a crash.
//   - It crashed, and nobody has the sockets but the kernel. They go on working. The
//     next process offers the kernel a new connection, which the kernel takes only in
//     place of a dead one, and says so; so nothing has to be believed.
//
// In each case [Supervisor.Adopt] does the rest. What is attached by ioctl dies with its
// process and cannot be adopted. A connection by TLS goes through this process
// (package relay) and dies with it: the next one connects anew. What [Spec].Serve serves
// ends with the process, too; the next one serves it anew, if its contents last.
//
// # When memory is short, or the root is on the device
//
// While connections are dead, nothing may wait for the device: no file on it, nor one
// that shares its journal. So names were looked up and certificates read when the device
// was attached, and are looked up and read anew only on the side; files are written, and
// the service manager is told, by a goroutine for which nobody waits; and lines of the
// log that nobody takes are dropped. What the program itself must do, above all lock its
// memory, package internal/memlock does.
package supervise
