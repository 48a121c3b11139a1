package clientflags

import (
	"fmt"
	"io"
	"strings"
)

// Usages are the forms of the command line.
func Usages() []string {
	return []string{
		"nbd-client [option ...] host [port] [device]",
		"nbd-client [option ...] -unix path [device]",
		"nbd-client [option ...] URI ... [device]",
		"nbd-client [option ...] --serve CHAIN [device]",
		"nbd-client [option ...] nbdN",
		"nbd-client -d device",
		"nbd-client -c device",
		"nbd-client -l host [port]",
		"nbd-client command ...",
	}
}

// Forms returns how the option is written, such as "-N NAME, -name NAME".
func (o Option) Forms() string {
	var forms []string
	if o.Short != 0 {
		forms = append(forms, strings.TrimSpace(fmt.Sprintf("-%c %s", o.Short, o.Arg)))
	}
	switch {
	case o.Long == "":
	case o.Old:
		forms = append(forms, strings.TrimSpace("-"+o.Long+" "+o.Arg))
	case o.Arg != "":
		forms = append(forms, "--"+o.Long+"="+o.Arg)
	default:
		forms = append(forms, "--"+o.Long)
	}
	return strings.Join(forms, ", ")
}

// Usage returns how the command is written.
func (c CommandInfo) Usage() string {
	return strings.TrimSpace("nbd-client " + string(c.Name) + " " + c.Operands)
}

// Takes reports whether the option is for the command, "" for attaching.
func (o Option) Takes(a Action) bool {
	if o.Of == "*" {
		return true
	}
	for _, name := range strings.Split(o.Of, ",") {
		if name == string(a) {
			return true
		}
	}
	return a == Wait && o.Long == "timeout"
}

// WriteHelp writes the usage text.
func WriteHelp(w io.Writer) error {
	var b strings.Builder
	for i, u := range Usages() {
		lead := "       "
		if i == 0 {
			lead = "Usage: "
		}
		b.WriteString(lead + u + "\n")
	}
	b.WriteString(`
Attaches an export of an NBD server, or a file, as a block device, and keeps it.

  host      the server's name or address
  port      its TCP port; the default is ` + DefaultPort + `
  device    such as /dev/nbd0; "auto", or none: the kernel chooses, and it is printed
  URI       such as nbd://host/export; several are addresses of the same export
  nbdN      a device that ` + DefaultTab + ` describes

`)
	for _, o := range options {
		if !o.Hidden && !onlyOfCommands(o) {
			fmt.Fprintf(&b, "  %s\n        %s\n", o.Forms(), o.Help)
		}
	}
	b.WriteString("\nCommands (the first word of the command line; a server of that name needs a URI, or -- before it):\n\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "  %s\n        %s\n", strings.TrimPrefix(c.Usage(), "nbd-client "), c.Help)
		for _, o := range options {
			if onlyOfCommands(o) && o.Takes(c.Name) {
				fmt.Fprintf(&b, "        %s: %s\n", o.Forms(), o.Help)
			}
		}
	}
	b.WriteString("\nSee nbd-client(8), and nbdtab(5) for the table of devices.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// onlyOfCommands tells options that attaching does not take.
func onlyOfCommands(o Option) bool { return !o.Takes(Attach) }
