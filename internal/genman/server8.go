package main

import (
	"strings"

	"nbd.example/nbd/internal/serverflags"
)

// server8 is nbd-server(8).
func server8() string {
	var r roff
	r.line("TH", "NBD-SERVER", "8", "", "nbd", "System Administration")
	r.line("SH", "NAME")
	r.text(`nbd-server - serve files, block devices and memory as network block devices`)
	r.line("SH", "SYNOPSIS")
	r.text("*nbd-server* " + serverflags.Usage[len("nbd-server "):])
	r.line("SH", "DESCRIPTION")
	r.text(`A client of an NBD server uses a file or a disk of the server as if it were a disk of its own: Linux as /dev/nbd0, a virtual machine without any help of its kernel.

The exports of the server are those of its configuration file, see *nbd-server(5)*, and one more, the default export, if the command line names a file.

The server goes to the background when it serves, and not before: an error at the start is said on the terminal, and the exit status is not 0. It stays in the foreground with *-n* or *-d*, with port 0, and where a service manager has passed it sockets (LISTEN_FDS) or waits for its message (NOTIFY_SOCKET).`)
	r.line("SH", "OPERANDS")
	r.item("address", `The address to listen on: IPv4, IPv6, or a host name, which stands for all of its addresses. Without it the server listens on all addresses. Between an IPv4 address and the port there may be a colon in place of the @. An address on the command line is added to what the configuration says of port and listenaddr, and takes the place of their defaults.`)
	r.item("port", `The TCP port, a number or the name of a service. With 0 the client is on standard input, as inetd has it; the server ends with the connection, and if standard error is the same socket it logs to syslog.`)
	r.item("file", `A regular file, a block device, or a chain: a back end with layers on it, such as memory:1G or "/srv/disk.img | delay:read=10ms". A text that starts with / or ./ or names an existing file is a file. --chains lists what chains are made of.`)
	r.item("size", `How many bytes to serve, if not all of the file; k, M, G or T behind the number multiply it by powers of 1024. A file that does not exist is created with this size, and an empty one is given it. One that is smaller is refused.`)
	r.line("SH", "OPTIONS")
	for _, o := range serverflags.Options() {
		text := strings.ToUpper(o.Help[:1]) + o.Help[1:] + "."
		if o.More != "" {
			text += " " + o.More
		}
		r.item(o.Forms(), text)
	}
	r.line("SH", "SIGNALS")
	r.item("SIGHUP", `Read the configuration, keys, certificates and lists of clients again. Everything new is opened first; then all of it is taken over, or, if anything is wrong, nothing, and the log says why. Exports that did not change go on undisturbed; one that changed refuses new connections until the old ones are gone. New addresses are listened on, and those that are no longer named are closed; who is connected stays so. Ports below 1024 and sockets in folders of root's, when user has taken root's rights away, and one address of a port of which all were listened on, or the other way round, need a restart, and all addresses stay as they were until then; so do user, group, run_user, control and swap. Then the configuration is the truth again: exports that were added by nbd ctl are removed, and those that it has changed are as the configuration says. Transaction logs are opened by their names again, also if the configuration is wrong.`)
	r.item("SIGTERM, SIGINT", `Accept nothing new, answer what clients have asked, and end. Connections that do not end within 30 seconds are cut; a second signal cuts them at once, and the exit status is then 1.`)
	r.item("SIGUSR1", `Merge what exports with waitfile have collected into their files, while clients go on; see waitfile in nbd-server(5), and "nbd ctl merge". Without such an export it does nothing.`)
	r.line("SH", "EXIT STATUS")
	r.item("0", `The server ended as it was told to; or it serves, in the background.`)
	r.item("1", `It could not start, or failed later; or the configuration has errors.`)
	r.item("2", `The command line cannot be understood.`)
	r.line("SH", "ENVIRONMENT")
	r.item("LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES", `Listening sockets of a service manager, see sd_listen_fds(3). With them, what the configuration and the command line say of addresses has no effect. What their names mean stands under SYSTEMD.`)
	r.item("NOTIFY_SOCKET", `Where to send READY, RELOADING and STOPPING, see sd_notify(3).`)
	r.item("JOURNAL_STREAM", `If it names standard error, log lines begin with their priority, such as <6>.`)
	server8End(&r)
	return r.String()
}

// server8End writes the last sections.
func server8End(r *roff) {
	r.line("SH", "SYSTEMD")
	r.text(`nbd-server.service serves the configuration, and nbd-server.socket, if it is enabled, starts it with the first client. The name of a socket (FileDescriptorName) says what it is for: *control* is that of nbd ctl, *oldstyle@EXPORT* serves one export to clients of before 2011, *oldstyle* does so where there is one export, and any other name is for clients as they are today. Where sockets for clients are passed, the server makes none of its own.`)
	r.text(`The unit takes rights from the server: of the capabilities it leaves those for files, ports and users, it admits no further system calls than services usually need, no new privileges (sudo), and nothing can be written in /usr, /boot and /etc. Commands of prerun and postrun are bound by that, also as root (run_user = root): lvcreate, losetup and mount fail. A drop-in in /etc/systemd/system/nbd-server.service.d lifts it:`)
	r.example("[Service]\nCapabilityBoundingSet=~\nSystemCallFilter=\nNoNewPrivileges=no\nProtectSystem=true")
	r.text(`The folder systemd/examples of the sources has it, and sockets for nbd ctl and for antique clients.`)
	r.line("SH", "FILES")
	r.item(serverflags.DefaultConfig, `The configuration.`)
	r.item(serverflags.DefaultAuth, `The clients that may use the export of the command line. If the file does not exist, everybody may.`)
	r.line("SH", "WINDOWS")
	r.text(`There the server can be a service. "nbd-server service COMMAND", where COMMAND is one of these, does that; with --name NAME it is another service than the one that is called nbd-server:`)
	for _, c := range serverflags.ServiceCommands {
		r.item(c.Form, strings.ToUpper(c.Help[:1])+c.Help[1:]+".")
	}
	r.line("SH", "EXAMPLES")
	r.text(`A file, on port 10809 of all addresses:`)
	r.example(`nbd-server 10809 /srv/disk.img`)
	r.text(`A gigabyte of memory, in the foreground:`)
	r.example(`nbd-server -n 10809 memory:1G`)
	r.text(`A device, for this machine only, and nothing of it is changed:`)
	r.example(`nbd-server ::1@10809 /dev/sdb1 -c`)
	r.text(`The same as a section for the configuration file:`)
	r.example(`nbd-server ::1@10809 /dev/sdb1 -c -o disk`)
	r.line("SH", "SEE ALSO")
	r.text(`*nbd-server(5)*, *nbd-client(8)*, *nbd(1)*, *nbd-ctl(1)*, *nbd-trdump(1)*, *nbd-trplay(1)*`)
}
