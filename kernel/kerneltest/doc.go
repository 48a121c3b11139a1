// Package kerneltest is a fake kernel with an NBD driver, to test programs that attach
// kernel devices without root and without a kernel.
//
// It speaks the transmission phase for real over the sockets that it is given, and does
// in each situation what nbd.ko of Linux 6.12 does, also where that is odd. The comment
// of package kernel says what that is; the names in parentheses in this package are the
// functions of nbd.ko whose place a function takes.
//
// # Concepts
//
// A [Kernel] holds [Device]s. A program under test gets a [Driver] from [Kernel.Open].
// The test itself plays the file system on top, with [Device.ReadAt] and the like, and
// looks at what the device went through: [Device.Sockets], [Device.Resent].
//
// Requests are distributed over the connections in turn, where a real kernel goes by
// processors. A request has a cookie of a tag and a generation, which changes with each
// sending. Timeouts run in seconds that a test can make short: [Config].Second.
//
// Everything that a real kernel does behind one's back happens here in goroutines.
// [Kernel.Close] ends them.
//
// # What is not like the kernel
//
// There are no partitions, holders or mounts; [Device.SetInfo] makes them up. The old
// receiver of a connection that was replaced never declares the new one dead, as nbd.ko's
// could.
package kerneltest
