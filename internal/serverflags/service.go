package serverflags

import "strings"

// ServiceCommand is one of the commands behind "nbd-server service", on Windows.
type ServiceCommand struct {
	Form string // how it is written
	Help string // in the lines of the usage text
}

// ServiceCommands are those commands.
var ServiceCommands = []ServiceCommand{
	{"install [--account ACCOUNT] [--manual] [--] [command line of the server]", `make the server a service of Windows, which is started with the system
(with --manual only by hand), runs under LocalSystem or the account, in
the folder that this command is given in, and logs to the event log`},
	{"start", "start it, and wait until it serves"},
	{"stop", "let it answer what it has read, and end"},
	{"reload", "have it read its configuration again"},
	{"status", "tell whether it runs"},
	{"remove", "stop it, and make it no service any more"},
}

// ServiceUsage explains "nbd-server service".
func ServiceUsage() string {
	var b strings.Builder
	b.WriteString("Usage: nbd-server service COMMAND [--name NAME] ...\n\n")
	for _, c := range ServiceCommands {
		b.WriteString("  " + c.Form + "\n        " + strings.ReplaceAll(c.Help, "\n", "\n        ") + "\n")
	}
	return b.String() + "\nThe name of the service is nbd-server if no other is given.\n"
}
