// Package nbdnl tells the kernel's NBD driver what to do by its generic netlink family,
// "nbd": the interface of all kernels since 4.12, and the only one by which a device
// survives its connections.
//
// # Concepts
//
// Netlink is a socket to the kernel itself. Programs send messages with attributes, and
// the kernel answers each before the sending returns, or does not return. [Open] finds
// out the number of the family and keeps it, so that nothing has to be asked for later
// on a kernel that is stuck.
//
// A message is a command (connect, disconnect, reconfigure, status) and attributes,
// some of which hold further attributes: the list of sockets, the list of devices. The
// codec in this package turns the types of package kernel into attributes and back,
// without a socket: codec.go. The command for dead connections, link dead, comes by
// itself to all who have joined the multicast group "nbd_mc_group": watch.go.
//
// # What hangs
//
// The kernel does one generic netlink command at a time, of all families that did not
// ask for more: nbd did not. A command that cannot end therefore stops all others, of
// all processes, the question for a family's number included. Commands that cannot end:
//
//   - disconnecting a device with a connection whose peer reads no more, while its
//     buffer is full and the device has no Timeout: the driver wants to say goodbye.
//     Shut the sockets down first, where they are at hand.
//   - changing the size while requests wait on a dead connection.
//
// So each call has a goroutine and a socket of its own here, and returns with the error
// of its ctx when that ends first. What the kernel does later is not undone, except
// that a device which it attaches after all is detached.
//
// # Errors
//
// The driver says EINVAL to nearly everything. What this package finds out afterwards,
// from sysfs, becomes one of the errors of package kernel. Text that the kernel sends
// along (extended acknowledgement) is in the error, too.
package nbdnl
