// Package chain turns a line of text into a device: a back end with layers on
// it.
//
// # Concepts
//
// A chain is a back end and the layers on it, in the order in which they are
// stacked: the back end first, the layer that is asked first last.
//
//	/srv/disk.img
//	memory:1G
//	file:/srv/disk.img,direct=true | cow:dir=/var/tmp | delay:read=10ms
//
// A [Registry] holds what elements there are: their names, their parameters, and
// the functions that open them. It is a value, which a program fills with what it
// should carry; package core has the usual set. [Registry.Parse] reads a text and
// checks all of it, without opening anything; the result is a [Spec], which opens
// any number of devices. What the registry declares is also what [Registry.WriteHelp]
// prints, so help and checks cannot disagree.
//
// # The text
//
//	chain   = file { sep layer } | element { sep element }
//	sep     = " | " | "::"
//	element = name [ ":" param { "," param } ]
//	param   = key "=" value | value
//
// A text that begins with "/", "./", "../" or a drive letter ("C:\" or "C:/"), that is
// in double quotes, or that names an existing file, is a file: it goes on to the
// next separator, commas and all, and has no parameters. Anything else begins with
// the name of a back end. An existing file wins over all else, with its whole name:
// a file that is really called "a::b" is found.
//
// Both separators mean the same. " | " is the clear one, and has white space on
// both sides; "::" needs no quoting in a shell, as in
//
//	nbd-server 10809 /srv/disk.img::cow::delay:read=10ms
//
// and is not seen between square brackets, where IPv6 addresses have it.
//
// An element has at most one main parameter, whose key is left out:
// "memory:1G" means "memory:size=1G". A main parameter comes first.
//
// A value with a comma, a separator, or white space at an end is put in double
// quotes; in these, \" is a quote and \\ a backslash, and everything else means itself.
// Outside of quotes a backslash means itself.
//
// # Values
//
// Sizes are in bytes, with an optional unit: k, M, G, T, P or E, of either case, in
// steps of 1024, which may also be written KiB, MiB and so on. Durations have
// units, like 10ms or 1.5s. Switches are true or false, yes or no, on or off, 1 or
// 0; a key alone means true.
package chain
