// Package wine runs what was built for Windows, on Linux under wine: nbd-server, in
// a console and as a service, with real clients; and the tests of the packages
// that the server is made of.
//
// # What wine is, and is not
//
// Wine loads programs for Windows and gives them what Windows would, out of Linux.
// Files, sockets, modes of sharing, consoles and services are close enough to
// Windows to find our mistakes in using them. Wine 8 has no unix sockets, no sparse
// files (FSCTL_SET_ZERO_DATA, FSCTL_QUERY_ALLOCATED_RANGES) and no sizes of disks:
// what depends on these is built, and not run. Nor does it tell anything about
// Windows' own caches, so these tests are none of durability.
//
// # Two things that it lacks for Go
//
// Programs that Go 1.26 has built load bcryptprimitives.dll for random numbers.
// The tests make one, of a kilobyte and without code: it forwards the one
// function that is needed to a DLL that wine has. And the removal of a folder by
// package os relies on a call of Windows 10 that fails here in a way that Go does
// not expect; a test binary is therefore built with a file that switches to
// the call of older systems. The server is built as it is.
//
// # Running them
//
// They take a minute or two and 700 MB for the system that wine makes itself, so
// they wait to be asked: NBD_TEST_RUN=wine go test ./test/wine. They need the program
// wine64 and the go command.
package wine
