// Package nbdioctl tells the kernel's NBD driver what to do by ioctl: the interface of
// 1997, for kernels before 4.12, and for containers that have /dev/nbd0 but no netlink.
//
// # Concepts
//
// A thread hands its sockets over (NBD_SET_SOCK), says what the export is like, and then
// lends itself to the driver: NBD_DO_IT returns when the device is detached, or all its
// connections are dead. So the device lives no longer than the process, nobody else can
// take it over, and there is no reconnecting: a new socket would need a new NBD_DO_IT,
// before which everything that waited has failed. What other programs offer as
// persistence by this interface loses requests.
//
// The thread in NBD_DO_IT must get no signal: the driver takes each for a wish to
// detach. So all of them are blocked on it, those that Go's runtime uses between threads
// included. Therefore [syscall.AllThreadsSyscall] must not be called while a device is
// attached, nor what is built on it ([syscall.Setuid], flags that are set on all
// threads): the whole process would stand still. Do that before.
//
// # What is missing
//
// Attach.DeadTimeout is ignored: requests fail at once when all connections are dead.
// Attach.Identifier is ignored, and Attach.Client refused. A device can get another
// size or timeout while it is attached, but no other sockets.
package nbdioctl
