package main

import (
	"strings"

	"nbd.example/nbd/internal/clientflags"
)

// client8 is nbd-client(8).
func client8() string {
	var r roff
	r.line("TH", "NBD-CLIENT", "8", "", "nbd", "System Administration")
	r.line("SH", "NAME")
	r.text(`nbd-client - attach network block devices, and keep them attached`)
	r.line("SH", "SYNOPSIS")
	for i, u := range clientflags.Usages() {
		if i > 0 {
			r.line("br")
		}
		r.text("*nbd-client*" + strings.TrimPrefix(u, "nbd-client"))
	}
	r.line("SH", "DESCRIPTION")
	r.text(`An NBD server exports files and disks. *nbd-client* attaches such an export as a block device of Linux, /dev/nbd0 for example, on which there can be anything that can be on a disk: a file system, also that of the root folder, or swap.

Once the device can be used, the program prints its name, goes to the background, and keeps the device: when a connection dies, because the server was restarted or the network was gone, it connects again, as often as it takes. It compares what the server then says with what it said at first, and never puts another export, or another instance of it, under a device that is in use. Reads and writes wait meanwhile; see *--on-failure*. An error at the start is said on the terminal, and the exit status is not 0. The process stays in the foreground with *-n*, and where a service manager has started it and waits for its message (NOTIFY_SOCKET). If *nbd-client supervisor* runs, it keeps the device, and no process is added, but for *--serve*, *-swap*, *-nonetlink* and *--ignore-term*.

Attaching what is attached already changes nothing, and prints the device that has it. It is the identifier (*-i*) that counts. But a device that can be written is not what *-R* wants, nor one with blocks of another size than *-b* says: that is an error. Other options that differ are named and have no effect. Who names another device, and no identifier, gets a second one, whose identifier ends in # and the device's name.`)
	r.line("SH", "OPERANDS")
	r.item("host", `The server's name or address. Of a name with several addresses all are tried. An IPv6 address may stand in brackets, and a port behind a colon.`)
	r.item("port", `Its TCP port, a number; `+clientflags.DefaultPort+` if it is left out. A server of before 2011, which has one export on each port, is known by its first words, if neither a name nor TLS is asked for.`)
	r.item("device", `The kernel device: /dev/nbd0, nbd0, /dev/nb0 as in the first documentation, or a link to one. With "auto", or without it, the kernel chooses a free one or makes a new one.`)
	r.item("URI", `nbd://host:port/export, nbds:// with TLS, nbd+unix:///export?socket=/path or nbds+unix://, nbd+vsock://CID:port/export from a virtual machine to its host (2), or back. Several URIs are addresses of the same export, and are tried in order.`)
	r.item("path", `With -unix, the path of the server's socket. One that begins with @ is abstract.`)
	r.item("nbdN", `One such word alone is a device that nbdtab(5) describes. Options on the command line hold against those of the table.`)
	r.line("SH", "OPTIONS")
	r.text(`Long options can be written with one dash or two, with their argument behind = or as the next word, and cut short as far as they are unique. Single letters can be joined.`)
	for _, o := range clientflags.Options() {
		if !o.Hidden && o.Takes(clientflags.Attach) {
			r.item(o.Forms(), sentence(o.Help)+" "+o.More)
		}
	}
	r.line("SH", "COMMANDS")
	r.text(`A command is the first word of the command line. A server that is called like one of them is written as a URI (nbd://list/), with a dot at its end, or behind two dashes: nbd-client -- list /dev/nbd0. Devices can be named by their identifiers as well.`)
	for _, c := range clientflags.Commands() {
		text := sentence(c.Help) + " " + c.More
		for _, o := range clientflags.Options() {
			if !o.Hidden && !o.Takes(clientflags.Attach) && o.Takes(c.Name) {
				text += "\n\n" + o.Forms() + ": " + sentence(o.Help) + " " + o.More
			}
		}
		r.item(strings.TrimPrefix(c.Usage(), "nbd-client "), text)
	}
	clientMore(&r)
	return r.String()
}

// clientMore writes the sections behind the options.
func clientMore(r *roff) {
	r.line("SH", "TLS")
	r.text(`The server is verified, always, by its certificate: it must name the host, or what -tlshostname says, and be certified by somebody whom the system, or -cacertfile, trusts. The reference verified only with both of these options; who has used neither, with a certificate of his own making, names it by -cacertfile now.

Between the kernel, which speaks no TLS, and the network, the process that keeps the device encrypts and decrypts. So with TLS a device waits when the process dies, until the next one connects anew. The same holds for vsock, which the kernel does not take either.

That process is prepared for a shortage of memory with *-swap* only. Without it, nothing of it is locked in memory, the kernel may make it wait for memory that only its own work would set free, and may choose it when it ends a process to get some. Where file systems on such a device are written faster than the server takes it, on a machine that is short of memory, use *-swap*, also if the device is not swapped on.`)
	r.line("SH", "SWAP")
	r.text(`With *-swap* all is done that can be done outside of the kernel so that a device can be swapped on: the process that keeps it has its memory locked and of a fixed size. The kernel reserves memory for the sockets that it has got. What remains is vm.min_free_kbytes: Linux 6.1 keeps so little for packets that come in that swapping stalls on small machines. nbd-client says what to set, and sets it with *--raise-reserve*; so give both, unless the system's administrator has seen to it.`)
	r.line("SH", "SERVER AND CLIENT ON ONE MACHINE")
	r.text(`What programs write to a file system on the device waits in memory, until the kernel writes it to the device; that is done through the server, and through the process that keeps the device. If these need memory for it, and all that there is waits to be written, nothing goes on any more. So whoever writes more than there is memory starts *nbd-client* with *-swap*, also if the device is not swapped on, and *nbd-server* with *--swap*: then both have what they need beforehand. *--serve* with *-swap* is both in one. What no program can prevent: a server whose export is a file on a disk needs the kernel's memory for that disk, which other programs may use up; and the server must not itself read or write anything that lies on the device (its log, its program, the file that it serves).`)
	r.line("SH", "WHEN A SERVER RESTARTS")
	r.text(`Requests that were not sent yet go to the new connection at once. Those that were sent, and not answered, are sent again by the kernel only when the request timeout (*-timeout*, 30 s) has passed since they were sent. A smaller timeout shortens that; but a server that takes longer than it for one request, because its disk is slow or many clients come at once, is given up although it is only slow, and the request is done twice. Choose it above the longest time that the server may need for anything: for flushing its cache to a disk, several seconds.

Measured, from the server's return: new requests were answered after 0.1 s, and those that were sent before after 30.7 s with the default, or with a timeout of 0, and after 5.7 s with *-timeout 5*. The default is 30 s, since a shorter one gives up servers that are merely slow.

A server whose machine or network is gone does not say so. A TCP connection from which nothing has come for as long as *-timeout* says, but at least 30 s, is given up, and made anew; with *-timeout 0* after five minutes (TCP_USER_TIMEOUT). So is one on which there is nothing to do: after 10 s of silence the server's machine is asked every 5 s whether it is there (keepalive). These two are fixed.`)
	r.line("SH", "WHEN THIS PROCESS ENDS")
	r.text(`The device stays attached, and works for as long as its connections do. The next process takes it over: *nbd-client supervisor* when it starts, or whoever attaches the same again. After *nbd-client upgrade* it is the same process, with the same connections.

Some devices cannot do without their process: those by TLS or vsock, whose connections go through it, those that it serves itself (*--serve*), and those of the old interface (*-nonetlink*). On SIGTERM it detaches them as soon as nobody uses them, and then ends; until then it answers as before, and says in the log what it waits for. A second SIGTERM ends it at once. Then, or when it is killed, devices of the old interface are gone, and whoever uses them gets errors. The others stay attached without a connection, which *status* tells by 3: reads and writes wait until the same is attached again, if it still is the same then, or until *detach --force*.

*nbd-client supervisor* ends at the first SIGTERM, since the next one connects its devices anew; only if none will come, because systemd shuts the machine down, it waits for them as well. That keeps no machine from going down, since whoever shuts it down sends SIGKILL after a while (TimeoutStopSec of systemd); what is mounted on such a device must be unmounted by then, or hangs.`)
	clientEnd(r)
}

// clientEnd writes the last sections.
func clientEnd(r *roff) {
	r.line("SH", "SIGNALS")
	r.item("SIGTERM", `The process ends, and its devices stay attached; but those that cannot do without it are detached, once nobody uses them (see above), and, when systemd shuts the machine down, all that nobody uses. Ignored with --ignore-term.`)
	r.item("SIGINT", `Detach the devices and end; or, if one of them is in use, say so, and go on. A supervisor ends as after SIGTERM.`)
	r.item("SIGHUP", `The supervisor reads nbdtab again, and attaches what is new there. Others ignore it.`)
	r.line("SH", "EXIT STATUS")
	r.item("0", `It is done; or the device is attached, and kept in the background.`)
	r.item("1", `It could not be done, or the command line cannot be understood. For -check and status: the device is not attached.`)
	r.item("2", `For -check and status: that could not be found out.`)
	r.item("3", `For status: the device is attached, and waits for a connection.`)
	r.item("4", `For wait: the time was over.`)
	r.item("5", `For detach: the device is in use.`)
	r.line("SH", "ENVIRONMENT")
	r.item("NOTIFY_SOCKET, WATCHDOG_USEC", `Where to send READY, STATUS and WATCHDOG, see sd_notify(3). The process stays in the foreground. If it was not started by process 1, but by a script for example, that needs *-n*.`)
	r.item("LISTEN_FDS, LISTEN_FDNAMES", `Sockets of devices that the service manager has kept for the process that died (FileDescriptorStoreMax).`)
	r.line("SH", "FILES")
	r.item(clientflags.DefaultTab, `The table of devices, see nbdtab(5).`)
	r.item(clientflags.DefaultState, `State of the kept devices, a file of JSON for each, and the sockets by which commands reach the processes that keep them.`)
	r.item("/dev/disk/by-nbd", `Links to attached devices, by their identifiers, where the rules of udev are installed. What a file's name must not have is written as \xNN.`)
	r.item("/usr/lib/systemd/system-generators/nbd-generator", `A link of this name to nbd-client is a generator of systemd: devices of nbdtab are attached when they are mounted.`)
	r.item("/usr/lib/systemd/system/nbd@.service, nbd-client.service", `The service of one device, and that of *nbd-client supervisor*. See nbdtab(5), "AT BOOT".`)
	r.item("/usr/lib/udev/rules.d/60-nbd-client.rules", `The rules of udev, which keep others from reading devices that are not attached, and make the links.`)
	r.line("SH", "EXAMPLES")
	r.text(`Attach, mount, and detach again:`)
	r.example(`nbd-client server -N disk /dev/nbd0
mount /dev/nbd0 /mnt
umount /mnt && nbd-client detach nbd0`)
	r.text(`The same over TLS, on any free device:`)
	r.example(`nbd-client nbds://server/disk -A /etc/ssl/ca.pem`)
	r.text(`A file as a disk, and a copy of it that is forgotten:`)
	r.example(`nbd-client --serve /srv/disk.img
nbd-client --serve "/srv/disk.img | cow"`)
	r.text(`Two servers that have the same disk, and errors after five minutes without either:`)
	r.example(`nbd-client nbd://a/disk nbd://b/disk --on-failure=wait:5m`)
	r.text(`Swap:`)
	r.example(`nbd-client swapserver 2001 /dev/nbd1 -swap --raise-reserve
mkswap /dev/nbd1
swapon /dev/nbd1`)
	r.text(`What is attached:`)
	r.example(`nbd-client list`)
	r.line("SH", "SEE ALSO")
	r.text(`*nbdtab(5)*, *nbd-server(8)*`)
}
