package main

import (
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/serverflags"
)

// server5 is nbd-server(5).
func server5() string {
	var r roff
	r.line("TH", "NBD-SERVER", "5", "", "nbd", "File Formats")
	r.line("SH", "NAME")
	r.text(`nbd-server - configuration file of nbd-server`)
	r.line("SH", "SYNOPSIS")
	r.text("*" + serverflags.DefaultConfig + "*")
	r.line("SH", "DESCRIPTION")
	r.text(`The file says what *nbd-server(8)* serves, and how. It is made of sections, which begin with a name in square brackets, and lines *key = value*. A line that begins with # is a comment; behind a value, or behind the name of a section, there can be none.

The first section is *[generic]*. It must be there, even if it is empty, and is about the server as a whole. Each of the others is an export; its name is that by which clients ask for it.

Booleans are *true* or *false* (1 and 0 will do) and false where nothing else is said. Integers are made of digits only; sizes are in bytes. In a string, white space at the beginning is dropped, but that at the end is not; *\s*, *\t*, *\n*, *\r* and *\\* stand for a space, a tab, a newline, a carriage return and a backslash. Nothing is quoted.

Of a key that is given twice in a section, the last one holds; a section that is given twice in a file is one section. Of two exports of the same name in two files, the first one holds.

Keys that are not known, or in the wrong section, have no effect: the reference implementation ignores them, and old files have some. The server warns of them when it starts; *nbd-server --check-config* treats them as errors. Keys of the reference implementation that are not supported yet are errors, unless their value switches them off.`)
	r.line("SH", "KEYS OF [GENERIC]")
	keys(&r, nbdconf.Keys(true))
	r.line("SH", "KEYS OF AN EXPORT")
	keys(&r, nbdconf.Keys(false))
	r.line("SH", "EXAMPLES")
	r.example(`[generic]
	user = nbd
	group = nbd
	allowlist = true
[disk]
	exportname = /srv/disk.img
	authfile = /etc/nbd-server/allow
[scratch]
	exportname = memory:1G`)
	r.text(`with /etc/nbd-server/allow:`)
	r.example(`127.0.0.1
192.168.0.0/16
2001:db8::/32    # the laboratory`)
	r.line("SH", "SEE ALSO")
	r.text(`*nbd-server(8)*`)
	return r.String()
}

// keys lists the keys of a section.
func keys(r *roff, list []nbdconf.Key) {
	for _, k := range list {
		text := k.Kind.String()
		if k.Default != "" {
			text += "; default: " + k.Default
		}
		r.item(k.Name, text+"\n\n"+k.Help)
	}
}
