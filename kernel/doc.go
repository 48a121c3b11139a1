// Package kernel controls /dev/nbdX: the kernel's own NBD client.
//
// # Concepts
//
// The kernel speaks only the transmission phase, and only over sockets that are
// connected already. So user space connects, negotiates, and hands the sockets over,
// with the size, the block size and the flags that it has learned; then the kernel
// serves the block device. When a connection dies the kernel says so, and takes a new
// socket in its place.
//
// A [Driver] is the way to tell the kernel. There are two: by netlink (package nbdnl),
// and by the old ioctls (package nbdioctl), by which a device dies with its connections.
// Package kerneltest has a third one, a fake. [System] reads what the kernel shows of
// its devices in /sys and /proc, which needs neither a driver nor rights.
//
// What follows is what nbd.ko does, read in the sources of Linux 6.1 and 6.12, and tried
// on both.
//
// # The life of a device
//
// The module makes its first devices when it is loaded (nbds_max), of size 0. Connect
// gives one of them a size, and the attributes pid and backend in sysfs; the pid is that
// of the thread that has made the call ([System.Info] returns its process). One with a
// new index is made for the occasion.
//
// Partitions do not appear by themselves: the kernel looks for them when the device is
// opened the next time, which udev does, and [Driver.Rescan]. That reads from the
// device. It follows that the first one who opens a device whose connections are all
// dead hangs until there is a new one, though he only wants to look. So open it soon
// after Connect, before anything can happen to the connections.
//
// Disconnect sends NBD_CMD_DISC, shuts the sockets down and fails all requests. But the
// device keeps its size, its pid and its index as long as anybody has it open, or a
// partition of it. Nobody can attach it anew until then (EBUSY). Partitions again stay
// until it is opened the next time. [AwaitGone] waits for all of that, and opens it.
//
// The driver has only one notion of a device in use: somebody attached it, or has it
// open. So it says "connected" of one that is only open (see [Status]), and refuses to
// attach that, udev's short looks included: a Connect that returns [ErrBusy] deserves a
// second try.
//
// Three marks outlive an attachment: the read-only mark of BLKROSET, and the time limit of
// requests, if the next one sets none, which our drivers reset; and what LimitRequests sets.
//
// # When a connection dies
//
// A connection is dead when its socket is closed or shut down by either side, when the
// peer sends something that fits no request, or when a request has waited too long: for
// [Attach].Timeout. Then the driver shuts the socket down and says LINK_DEAD, once for
// each connection, without telling which one. Then, of its requests,
//
//   - those that come from now on take another connection that lives. If none does, they
//     wait, for no longer than DeadTimeout. When the first one has waited in vain, the
//     device is given up: everything fails at once, until there is a new socket.
//   - those that were sent wait for a reply that cannot come until their time is over:
//     Timeout, or 30 s if that is 0. Then they are treated like new ones. A new socket
//     does not make that any faster. So a small Timeout is what makes a device fast to
//     come back, and what makes a slow server look dead.
//
// With a Timeout of 0 and a single connection, the end of the 30 s declares nothing dead:
// it only sends again what was sent on a connection that has been replaced. If it has
// not, the request waits on, even on a device that was given up, until Disconnect. With
// several connections a Timeout of 0 is one of 30 s.
//
// What is sent again may have been done already, and may still be under way on the old
// connection. The server must see to it that an old write does not overtake a new one.
//
// While requests wait for a connection, sysfs does not count them as in flight.
//
// # Reconfigure
//
// It takes new sockets one by one, each for a connection that is dead, and silently drops
// the first that it has no place for and all behind it. A connection that is dead for us
// need not be so for the driver: shut the socket down, wait for LINK_DEAD. Whether a
// socket was taken shows in its SO_SNDTIMEO (see [Driver.Reconfigure]).
//
// The identifier must be the same as in Connect. The number of connections cannot
// change, nor can the server's flags.
//
// A new size, if it differs from the old one, is set before the sockets. Since 6.12 that
// waits for all requests, while new ones are held back: with requests on a dead
// connection it hangs until they fail. So never change the size along with sockets; and
// afterwards only when nothing is dead. A size below the old one cuts the device under
// its file system.
//
// # What hangs
//
// The driver does one netlink command at a time, and so does most of generic netlink: a
// command that hangs stops those of other processes for other devices too. A
// Disconnect hangs if the peer has stopped reading, the socket's buffer is full, and
// there is no Timeout: shut the socket down, and it goes on. Therefore it is good to
// keep copies of the sockets for as long as a device is attached. All calls of a Driver
// return when their ctx ends, whatever the kernel does.
//
// Each connection takes a worker thread of the kernel, which reads from it until its end.
// On a machine so busy that a new worker is not there within 10 ms, the kernel's rescuer
// takes all connections that wait for one, reads from the first, and comes to the next when
// that one has ended. So with several connections the first requests after Connect may be
// answered without anybody reading the answers, until their time is over and the connection
// is called dead; the one that replaces it is read. Seen on 6.1: then the stack of the
// thread nbdN-recv shows rescuer_thread and recv_work.
//
// # Limits
//
// The driver takes TCP and unix stream sockets, knows simple replies only, and makes an
// I/O error (EIO) of each error of the server. Requests are at most 32 MiB; by default
// 128 KiB (6.1) or 1,280 KiB (6.12), 128 at a time on each connection. Several
// connections need NBD_FLAG_CAN_MULTI_CONN. WRITE_ZEROES is used since 6.12.
package kernel
