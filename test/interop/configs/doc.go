// Package configs tests that configurations and command lines of twenty years are
// served as they were meant.
//
// The folder testdata has a file for each, written from manuals and from what
// distributions installed. Lines in them that begin with "#:" are for the test, and comments for
// everybody else:
//
//	#: file PATH SIZE              a file that is there, of that size
//	#: text PATH TEXT              a file with a text, \n for a newline
//	#: dir PATH                    a folder
//	#: tls PATH                    a folder with keys and certificates
//	#: include NAME TEXT           a file in includedir
//	#: crlf                        the lines end in CR LF
//	#: export NAME SIZE FLAGS      what a client on a unix socket finds; flags are
//	                               readonly, flush, fua, trim, rotational, noflush
//	#: tcp NAME SIZE               what a client at 127.0.0.1 finds
//	#: tcp refused NAME            it is not let in
//	#: secure NAME SIZE            what a client over TLS finds
//	#: refused NAME                an export that a plain client may not use
//	#: blind NAME SIZE             an export that can be written, but not read
//	#: oldstyle PORT SIZE FLAGS    what an antique client finds on a port
//	#: untouched PATH              the file is the same after a client has written
//	#: there PATH                  a file is there, with something in it, once a client has written
//	#: gone PATH                   the file is not there any more
//	#: warns TEXT                  a warning; there must be no others
//	#: reference no                the reference does otherwise, and is not asked
//
// All paths are below a folder of the test's own.
package configs
