// Package kernel controls /dev/nbdX: the kernel's own NBD client.
//
// The kernel speaks only the transmission phase, and only over sockets that are
// connected already. So user space connects, negotiates, and hands the sockets over,
// with the size, the block size and the flags that it has learned; then the kernel
// serves the block device. When a connection dies the kernel says so, and takes a new
// socket in its place.
package kernel
