package main

import "nbd.example/nbd/internal/clientflags"

// nbdtab5 is nbdtab(5).
func nbdtab5() string {
	var r roff
	r.line("TH", "NBDTAB", "5", "", "nbd", "File Formats")
	r.line("SH", "NAME")
	r.text(`nbdtab - table of network block devices`)
	r.line("SH", "SYNOPSIS")
	r.text("*" + clientflags.DefaultTab + "*")
	r.line("SH", "DESCRIPTION")
	r.text(`Each line describes a kernel device, so that *nbd-client nbd0* attaches it. It is made of up to four fields with blanks or tabs between them. A field that begins with # begins a comment.`)
	r.line("SH", "FIELDS")
	r.item("device", `The name of the kernel device, without /dev/: nbd0.`)
	r.item("server", `The server's name or address, with :port if it is not `+clientflags.DefaultPort+`; or the path of its unix socket; or a URI, see nbd-client(8), which names the export as well: then the next field is missing.`)
	r.item("export", `The name of the export. A line of two fields means the default export.`)
	r.item("options", `Options with commas between them, without blanks. Those that are not known have no effect, and nbd-client says so; but what begins with an underscore is for your own use.`)
	r.line("SH", "OPTIONS")
	for _, o := range clientflags.TabOptions() {
		term := o.Tab
		if o.Arg != "" {
			term += "=" + o.Arg
		}
		text := sentence(o.Help)
		if o.Long != "" {
			text += " See " + o.Forms() + " in nbd-client(8)."
		}
		r.item(term, text)
	}
	r.line("SH", "AT BOOT")
	r.text(`Two ways lead from this table to devices that are there when they are needed.

With systemd, and the generator that comes with nbd-client, a line in fstab(5) is enough: who mounts a device of this table, or a partition of it, starts nbd@nbd0.service, which attaches it and keeps it. The option *_netdev* in fstab is needed, so that the mount waits for the network, and is undone before the network goes:`)
	r.example(`/dev/nbd0                    /mnt   ext4  _netdev  0  2
/dev/disk/by-nbd/data-part1  /data  ext4  _netdev,x-systemd.device-timeout=0  0  2`)
	r.text(`The second line is for a device that has the option *identifier=data* in this table: its name does not depend on the number of the device. By other names, UUID= for example, the device must have the option *auto*. systemd waits a minute and a half for a device; the option *x-systemd.device-timeout* of fstab changes that, and 0 means for ever, for servers that may start later. Who mounts by hand should say -o _netdev as well. Leave *x-systemd.requires=nbd@nbd0.service* away: with it, the file system is unmounted when the service is restarted.

Devices with the option *auto* are attached at boot even if nothing mounts them. Where nbd-client.service is enabled, one process keeps all of those, tries for ever if a server is not there, and takes over devices whose process has died.

The services can be restarted while their devices are in use: systemd keeps the connections meanwhile. Who stops the service of a device that is in use leaves it attached, and the service has failed then, until it is started again. At shutdown, devices are detached when what is on them was unmounted and swapped off.

Swap space in fstab is what most of systemd waits for at boot, and so does the machine if the server is not there. With a network that is configured only later, by NetworkManager for example, it must have the option *noauto* there, and be swapped on by a service of your own. The device needs the option *swap* in this table, so that it is swapped off in time:`)
	r.example(`/dev/nbd2  none  swap  nofail,_netdev`)
	r.line("SH", "EXAMPLES")
	r.example(`# swap space, called "swapexport" on the server
nbd0 nbdserver.example.com swapexport swap,persist
# another export of that server, attached at boot
nbd1 nbdserver.example.com data auto,identifier=data
# TLS; the server's certificate is one of our own authority
nbd2 nbds://nbdserver.example.com/secret cacertfile=/etc/ssl/ca.pem
# a socket
nbd3 /run/nbd.sock disk unix`)
	r.line("SH", "SEE ALSO")
	r.text(`*nbd-client(8)*, *fstab(5)*, *systemd.mount(5)*`)
	return r.String()
}
