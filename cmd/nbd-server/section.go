package main

import (
	"fmt"
	"strings"

	"nbd.example/nbd/internal/nbdconf"
)

// printSection writes the export of the command line as a section.
func (p *program) printSection() int {
	if p.flags.File == "" {
		p.log.Error("-o needs a complete export on the command line: port and file")
		return exitUsage
	}
	x := p.commandLineExport()
	x.Name = p.flags.Section
	_, err := fmt.Fprint(p.env.stdout, p.whereToListen(x))
	if err == nil {
		err = x.WriteSection(p.env.stdout)
	}
	if err != nil {
		p.log.Error(err.Error())
		return exitError
	}
	return exitOK
}

// whereToListen returns, as comments, the keys of [generic] that have the server listen
// where the command line does: in the section of an export there is no place for them. An
// export for antique clients has keys of its own for it.
func (p *program) whereToListen(x *nbdconf.Export) string {
	f := p.flags
	var lines []string
	key := func(name, value string) { lines = append(lines, name+" = "+value) }
	listen := f.Addresses
	a, _ := nbdconf.ParseAddress(f.Address)
	switch {
	case f.Inetd:
		key("port", "0")
	case f.Listen != nil:
		a = nbdconf.Address{Network: "tcp", Host: f.Listen.Host, Port: f.Listen.Port}
		if f.OldStyle {
			break
		}
		key("port", a.Port)
		if a.Host != "" {
			key("listenaddr", a.Host)
		}
	case !f.OldStyle:
		listen = f.AllAddresses()
	}
	if len(listen) > 0 {
		key("listen", strings.Join(listen, ", "))
	}
	switch {
	case f.OldStyle && a.Network == "tcp":
		key("oldstyle", "true")
		x.Port = a.Port
		if a.Host != "" {
			x.ListenAddr = []string{a.Host}
		}
	case f.OldStyle:
		p.log.Warn("no key stands for --oldstyle without a TCP port; the section is for clients as they are today")
	}
	if len(lines) == 0 {
		return ""
	}
	return "# Where to listen is said in [generic]:\n#\t" + strings.Join(lines, "\n#\t") + "\n"
}
