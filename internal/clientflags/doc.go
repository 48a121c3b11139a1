// Package clientflags reads the command line of nbd-client: the one that the
// reference has had since 1997, and what was added since.
//
// # Concepts
//
// The old command line attaches a kernel device, in one of these forms:
//
//	host [port] device      a server by its name or address
//	-unix path device       a server on a unix socket
//	nbd0                    what nbdtab says of this device
//	-d device               detach
//	-c device               is it attached?
//	-l host [port]          what does the server export?
//
// To these come NBD URIs in place of host and port, "auto" or nothing in place of the
// device (the kernel chooses), and commands: list, status, detach and so on. A word is
// a command only if it is the very first of the command line, so that a server may be
// called "list": "-- list /dev/nbd0", "list. /dev/nbd0" or nbd://list/ name it.
//
// Options stand anywhere. They are written as the reference's getopt_long_only took
// them: -name x, -name=x, --name x, --name=x, each long name cut short as far as it is
// unique, and single letters joined (-Rs), with their argument in the same word or the
// next (-t30, -t 30).
//
// One table, [Options], is all that the package knows of options. The help text, the
// manual pages of nbd-client and of nbdtab, the completions of shells, and the parser
// of nbdtab are made from it.
package clientflags
