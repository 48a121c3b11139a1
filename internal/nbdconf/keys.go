package nbdconf

// Kind is the type of a key's value.
type Kind int

// Kinds.
const (
	String Kind = iota
	Bool
	Int
	Size // bytes
	List // separated by commas
)

// String returns the name that the manual uses.
func (k Kind) String() string {
	return [...]string{"string", "boolean", "integer", "integer, bytes", "list"}[k]
}

// Status says what becomes of a key.
type Status int

// Statuses.
const (
	Supported Status = iota
	Ignored          // accepted, without effect
	NotYet           // refused, unless its value switches it off
)

// Key is one key of a section.
type Key struct {
	Name    string
	Kind    Kind
	Status  Status
	Default string // as the manual shows it; "" says nothing
	Help    string // paragraphs, separated by empty lines
	// field returns a pointer to where the value goes: *string, *bool, *Tri, *int,
	// *int64 or *[]string. Nil for what is not Supported.
	field func(g *Generic, x *Export) any
}

// Keys returns the keys of [generic], or those of an export section, by name.
// The manual page is made from them.
func Keys(generic bool) []Key {
	if generic {
		return genericKeys
	}
	return exportKeys
}

func find(keys []Key, name string) (Key, bool) {
	for _, k := range keys {
		if k.Name == name {
			return k, true
		}
	}
	return Key{}, false
}

var genericKeys = []Key{
	{Name: "allowlist", Kind: Bool, field: func(g *Generic, _ *Export) any { return &g.AllowList },
		Help: `Lets clients ask for the list of exports, as "nbd-client -l" and "nbdinfo --list" do.`},
	{Name: "cacertfile", Kind: String, field: func(g *Generic, _ *Export) any { return &g.CACertFile },
		Help: `A PEM file of certificate authorities. If it is set, a client that negotiates TLS must present a certificate that one of them has signed; otherwise clients' certificates are not asked for.`},
	{Name: "certfile", Kind: String, Default: "the value of keyfile", field: func(g *Generic, _ *Export) any { return &g.CertFile },
		Help: `The PEM file of the server's certificate, followed by those that lead to its authority. It is read again on SIGHUP.`},
	{Name: "control", Kind: String, field: func(g *Generic, _ *Export) any { return &g.Control },
		Help: `The path of a unix socket on which "nbd ctl" looks at the server and changes it; see nbd-ctl(1). It is made before the server changes to user, for its owner alone: who can write to it can have the server serve any file that it can open, and, by prerun, have commands run as run_user. A change of its mode or group, once it is there, lets others in; so does a socket of systemd by the name of control, with SocketMode and SocketGroup. On Windows the socket has the rights that its folder hands down: name one that only administrators can write to. The option --control has precedence.

The reference does not know this key.`},
	{Name: "duallisten", Kind: Bool, field: func(g *Generic, _ *Export) any { return &g.DualListen },
		Help: `Listen on TCP although unixsock is set.`},
	{Name: "force_tls", Kind: Bool, field: func(g *Generic, _ *Export) any { return &g.ForceTLS },
		Help: `Refuse everything but TLS, in every export (the protocol's FORCEDTLS mode). Without it, but with keyfile, TLS is offered, and demanded only for exports that have force_tls themselves.`},
	{Name: "group", Kind: String, field: func(g *Generic, _ *Export) any { return &g.Group },
		Help: `The group, by name or number, that the server changes to together with user.`},
	{Name: "handshake_timeout", Kind: Int, Default: "30", field: func(g *Generic, _ *Export) any { return &g.Limits.HandshakeTimeout },
		Help: `How many seconds a client may take to choose an export; prerun, and the opening of files, do not count. -1 lets it take as long as it wants. The reference does not know this key, nor the other limits in this section but max_threads. All of them are taken over on SIGHUP, for new connections.`},
	{Name: "includedir", Kind: String, field: func(g *Generic, _ *Export) any { return &g.IncludeDir },
		Help: `A folder. Every file in it whose name ends in .conf is read as a part of this file, in the order of their names. Such files hold exports only: no [generic]. The folder must exist.`},
	{Name: "keyfile", Kind: String, field: func(g *Generic, _ *Export) any { return &g.KeyFile },
		Help: `The PEM file of the server's private key. It switches TLS on. It is read before the server changes to user, and again on SIGHUP, as are certfile and cacertfile: by a process that stays who the server was, so that nobody but root need be able to read them. Files of other names than those of the start are read as user; if user may not, the reload fails, the earlier ones stay in use, and a restart is needed.`},
	{Name: "listen", Kind: List, field: func(g *Generic, _ *Export) any { return &g.Listen },
		Help: `Addresses to listen on, of any kind and any number, separated by commas: HOST:PORT or :PORT for TCP, with an IPv6 address in brackets; unix:PATH; vsock:PORT or vsock:CID:PORT, on Linux, for virtual machines and their hosts. They are added to those of port, listenaddr and unixsock; if none of these keys is there, they are all. A path that has a comma can only be given to unixsock.

The reference does not know this key.`},
	{Name: "listenaddr", Kind: List, Default: "all addresses, IPv4 and IPv6", field: func(g *Generic, _ *Export) any { return &g.ListenAddr },
		Help: `The addresses to listen on, separated by commas or white space. 0.0.0.0 stands for all IPv4 addresses, :: for all IPv6 addresses. A host name stands for all of its addresses.`},
	{Name: "max_threads", Kind: Int, Default: "32", field: func(g *Generic, _ *Export) any { return &g.MaxThreads },
		Help: `How many requests of one connection may wait for the disk at the same time. What is answered from the page cache needs no thread.`},
	{Name: "maxconnections_client", Kind: Int, Default: "no limit", field: func(g *Generic, _ *Export) any { return &g.Limits.MaxPerClient },
		Help: `How many connections one client may have at the same time, that is, one IP address, or one virtual machine by vsock. Clients on unix sockets are not counted. A client may well use several connections for one disk (nbd-client -C).`},
	{Name: "maxconnections_total", Kind: Int, Default: "no limit", field: func(g *Generic, _ *Export) any { return &g.Limits.MaxConnections },
		Help: `How many connections the server may have at the same time, those included that have not chosen an export yet. One more is closed at once, which is logged. The option -M, without a file, has precedence.`},
	{Name: "maxmemory", Kind: Size, Default: "1073741824", field: func(g *Generic, _ *Export) any { return &g.Limits.MaxMemory },
		Help: `How many bytes the requests of all clients, and what is being sent to them, may take together, at least 8388608. A single connection gets no more than a part of it, and one that has nothing is let in with one request, whatever the others hold. With swap the bounds are tighter, and this key has no effect.`},
	{Name: "maxpayload", Kind: Size, Default: "67108864", field: func(g *Generic, _ *Export) any { return &g.Limits.MaxPayload },
		Help: `The longest read or write in bytes, a multiple of 65536 from 33554432 to 1073741824, which clients that ask are told.`},
	{Name: "maxrequests", Kind: Int, Default: "4096", field: func(g *Generic, _ *Export) any { return &g.Limits.MaxRequests },
		Help: `How many requests of one connection may be unanswered at the same time. More are left in the socket until there is room.`},
	{Name: "oldstyle", Kind: Bool, field: func(g *Generic, _ *Export) any { return &g.OldStyle },
		Help: `Also serve clients of before 2011: each export that has a port is served on it, and to whoever connects there, in the protocol's oldstyle negotiation, which knows no names, no TLS and no list. Export sections then need port, at least one of them.

Where systemd passes the sockets, those that are called oldstyle@EXPORT (FileDescriptorName), or oldstyle where there is one export, are for antique clients, with or without this key.

The reference obeyed it until version 3.9, and has refused it since.`},
	{Name: "port", Kind: String, Default: "10809", field: func(g *Generic, _ *Export) any { return &g.Port },
		Help: `The TCP port to listen on, a number or the name of a service. With 0 the client is on standard input, as inetd has it, if that is a connected socket, and neither -n nor anything else says where to listen; otherwise it is any free port, which the log names.`},
	{Name: "run_user", Kind: String, Default: "the values of user and group", field: func(g *Generic, _ *Export) any { return &g.RunUser },
		Help: `Who runs prerun and postrun: USER or USER:GROUP. The commands are run by a helper process that is started before the server changes to user. So they may be run as root, or as somebody else, while the server itself is not.

The reference does not know this key.`},
	{Name: "splice", Kind: Bool, Status: Ignored,
		Help: `Accepted without effect here and in exports: the server chooses by itself how it moves data without copying.`},
	{Name: "stuck_timeout", Kind: Int, Default: "900", field: func(g *Generic, _ *Export) any { return &g.Limits.StuckTimeout },
		Help: `How many seconds a client may take nothing of what is ready for it. Then its connection is ended. -1 waits for as long as the connection lasts.`},
	{Name: "swap", Kind: Bool, field: func(g *Generic, _ *Export) any { return &g.Swap },
		Help: `Clients on this very machine swap on what is served, so that memory becomes free only if the server writes it. The server locks its memory, takes all that it will need at once, bounds what requests take to 8 MiB, is not ended for want of memory, and is marked as one that memory depends on, as "nbd-client -swap" does it; for all that it must be started by root. The option --swap does the same.

The export for swap should be a disk or a file that is opened past the page cache (exportname = file:/srv/swap,direct), and a unix socket serves best, since it needs no memory for packets; for TCP, vm.min_free_kbytes should be as large as "nbd-client -swap --raise-reserve" makes it. The reference does not know this key.`},
	{Name: "tlsonly", Kind: Bool, field: func(g *Generic, _ *Export) any { return &g.TLSOnly },
		Help: `The same as force_tls. The manual of the reference has it, but its program ignores it.`},
	{Name: "tlsprio", Kind: String, Default: "TLS 1.2 and 1.3", field: func(g *Generic, _ *Export) any { return &g.TLSPrio },
		Help: `A priority string of GnuTLS. Only what it says of versions is understood (as -VERS-TLS-ALL:+VERS-TLS1.2); of anything else the server says that it has no effect. Versions below 1.2 are never spoken.`},
	{Name: "unixsock", Kind: String, field: func(g *Generic, _ *Export) any { return &g.UnixSock },
		Help: `The path of a unix socket to listen on. With it there is no TCP listener, unless duallisten is set. A socket that a dead server left is replaced; one that is in use, or anything that is not a socket, is left alone.`},
	{Name: "user", Kind: String, field: func(g *Generic, _ *Export) any { return &g.User },
		Help: `The user, by name or number, that the server changes to after it has opened its sockets and keys, and before it opens exports. A server that was not started by root stays who it is, and says so.`},
}

var exportKeys = []Key{
	{Name: "authfile", Kind: String, field: func(_ *Generic, x *Export) any { return &x.AuthFile },
		Help: `A file of those who may use the export: on each line an address or a network in CIDR form; what follows a # is a comment. If the file does not exist, everybody may; if it is empty, nobody. It is looked at for each client, and read anew when it has changed; who is connected stays so. While a file that has changed cannot be read or has a line that is no address, nobody is let in, and the log says why; at the start, and on SIGHUP, that is an error of the configuration. The server's user must be able to read it. Clients on a unix socket have no address and are let in: there the rights of the socket decide.`},
	{Name: "copyonwrite", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.CopyOnWrite },
		Help: `Each connection writes to a diff of its own, which is gone when the connection ends. The file itself is never written.`},
	{Name: "cowdir", Kind: String, Default: "the folder of the file", field: func(_ *Generic, x *Export) any { return &x.COWDir },
		Help: `The folder for the diffs of copyonwrite, and for that of waitfile = true.`},
	{Name: "datalog", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.DataLog },
		Help: `Log in transactionlog what clients write, too, so that the log can be played again.`},
	{Name: "description", Kind: String, field: func(_ *Generic, x *Export) any { return &x.Description },
		Help: `A text for people, which clients are told that list the exports or ask for the description of this one, as "nbdinfo --list" does. The reference does not know this key.`},
	{Name: "exportname", Kind: String, field: func(_ *Generic, x *Export) any { return &x.ExportName },
		Help: `What is served; required. The absolute path of a file or block device, or a chain: the name of a back end or layer, a colon and its arguments, such as memory:1G. With temporary, a template for the name of the file. A %s becomes the client's address, see virtstyle, and %% becomes %. (In the protocol's terms the name of the export is that of the section.)`},
	{Name: "filesize", Kind: Size, Default: "the size of the file", field: func(_ *Generic, x *Export) any { return &x.FileSize },
		Help: `How many bytes are served. A file that exists must be at least as long. One that does not exist is created with this size, and an empty one is given it, also below copyonwrite, but not with readonly.

Without filesize, an export grows with its file or disk: clients that connect, or ask, are told the new size from then on, and those that are connected may use it, nothing needs to be restarted. SIGHUP makes the server look, too. Exports never become smaller while they have clients. Chains whose layers change sizes, copyonwrite, multifile and waitfile keep the size that they began with.`},
	{Name: "flush", Kind: Bool, Default: "true where it can be done", field: func(_ *Generic, x *Export) any { return &x.Flush },
		Help: `Offer NBD_CMD_FLUSH. An explicit false is obeyed, with a warning: then a client's fsync does nothing.

The reference has false as its default.`},
	{Name: "force_tls", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.ForceTLS },
		Help: `Serve, and list, this export over TLS only.`},
	{Name: "fua", Kind: Bool, Default: "true where it can be done", field: func(_ *Generic, x *Export) any { return &x.FUA },
		Help: `Offer writes that are stable when they are answered (NBD_CMD_FLAG_FUA). An explicit false is obeyed, with a warning.`},
	{Name: "listenaddr", Kind: List, Default: "that of [generic]", field: func(_ *Generic, x *Export) any { return &x.ListenAddr },
		Help: `The addresses for port. Without oldstyle in [generic] it has no effect: files that were made by the -o option have it, with the value (null).`},
	{Name: "maxconnections", Kind: Int, Default: "no limit", field: func(_ *Generic, x *Export) any { return &x.MaxConnections },
		Help: `How many connections the export may have at the same time.`},
	{Name: "minblock", Kind: Size, Default: "1", field: func(_ *Generic, x *Export) any { return &x.MinBlock },
		Help: `The smallest block that clients may read or write, a power of two up to 65536, of which the size must be a multiple. Clients that ask for the block sizes are told, and what they then ask for in less than whole blocks fails with EINVAL; clients that do not ask are served as before. No disk needs this key, since the server reads, changes and writes what is smaller than its blocks; it keeps clients from what is slow there. The reference does not know it.`},
	{Name: "multifile", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.MultiFile },
		Help: `Serve several files as one: exportname with .0 behind it, then .1, and so on until there is none, whatever their sizes. With filesize, that is the size of the whole; if there is no file at all, the first one is made with this size.`},
	{Name: "port", Kind: String, field: func(_ *Generic, x *Export) any { return &x.Port },
		Help: `The TCP port on which this export is served to antique clients, a number or the name of a service. It needs oldstyle in [generic], without which it has no effect.`},
	{Name: "postrun", Kind: String, field: func(_ *Generic, x *Export) any { return &x.PostRun },
		Help: `A command that is run when a client has gone, or could not be served after prerun had succeeded; see there. How it ends does not matter, but is logged. The connection is closed when it has ended, so that a client that waits for that finds its work done; but after 10 seconds the connection is closed all the same, and no longer counts for maxconnections, while the command goes on, for as long as postrun_timeout allows.`},
	{Name: "postrun_timeout", Kind: Int, Default: "3600", field: func(_ *Generic, x *Export) any { return &x.PostRunTimeout },
		Help: `How many seconds a postrun may take. Then it is ended, with all that it has started, and that is logged. -1 lets it take as long as it wants.`},
	{Name: "prerun", Kind: String, field: func(_ *Generic, x *Export) any { return &x.PreRun },
		Help: `A command that is run for each connection that asks for the export, before anything is opened for it. If it fails the client is refused. It is given to the system's shell; %s stands for the name of the file, unquoted, and %% for %. In its environment NBD_EXPORT is the name of the export, NBD_FILE the file and NBD_CLIENT the client's address. Its working directory is /, its standard input is empty, and what it says is logged; what it leaves running in the background must write elsewhere, for the pipe is closed two seconds after its end. It is run as run_user in [generic].

On Windows the shell is cmd.exe (/D /S /C), in the root folder of the system's drive; %%NAME%% there is what the environment has, run_user can name nobody but the server's own account, letters that are not ASCII may be logged wrongly, and what is ended gets no warning.

While it runs the client waits, and the time counts for no other limit. If the client hangs up, the command is ended, with all that it has started.

An export with prerun or postrun is opened for the first of its connections and closed behind the last, so that its file may be made and removed by these commands. Should the process that runs the commands end, another one is started; where that is not possible, since the server is not root any more and run_user names somebody else, the clients of these exports are refused.`},
	{Name: "prerun_timeout", Kind: Int, Default: "600", field: func(_ *Generic, x *Export) any { return &x.PreRunTimeout },
		Help: `How many seconds a prerun may take. Then it is ended, with all that it has started, and the client refused. -1 lets it take as long as it wants, while the client waits.`},
	{Name: "readonly", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.ReadOnly },
		Help: `Refuse writes.`},
	{Name: "rotational", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.Rotational },
		Help: `Tell clients that the order of requests matters to the disk.`},
	{Name: "sdp", Kind: Bool, Status: NotYet, Help: `Not supported: the Sockets Direct Protocol.`},
	{Name: "sparse_cow", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.SparseCOW },
		Help: `Keep the blocks of a copyonwrite diff at their own offsets in a sparse file, instead of one behind the other.`},
	{Name: "splice", Kind: Bool, Status: Ignored,
		Help: `Accepted without effect: the server chooses by itself how it moves data without copying.`},
	{Name: "sync", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.Sync },
		Help: `Make every write stable before it is answered.`},
	{Name: "temporary", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.Temporary },
		Help: `Serve each connection a new, empty file of filesize bytes, which has no name and is gone when the connection ends. It is made in the folder of exportname.`},
	{Name: "timeout", Kind: Int, Default: "0: never", field: func(_ *Generic, x *Export) any { return &x.Timeout },
		Help: `End connections that have asked for nothing for so many seconds. (The manual of the reference has it, but its program ignores it.) A kernel client that is idle is disconnected, too, and its device fails unless something connects it again.`},
	{Name: "tlsonly", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.TLSOnly },
		Help: `The same as force_tls. The manual of the reference has it, but its program ignores it.`},
	{Name: "transactionlog", Kind: String, field: func(_ *Generic, x *Export) any { return &x.TransactionLog },
		Help: `A file that records every request, and how it was answered. nbd-trdump(1) prints it, nbd-trplay(1) makes its changes again; those of the reference understand it, too. All connections of the export log to it, and several exports may. A file that exists is continued (the reference overwrites it); after a crash one of more than 16 MiB is kept as it is under a name with a time behind it, and a new one begins. Records are in the file a moment after the answer, at most a quarter of a second if the disk keeps up.

After SIGHUP the file is opened by its name again, so that it can be renamed first: that is how to rotate it. So it is before each prerun: one that renames the log gives clients that come one after the other logs of their own. If its disk is full, or does not move, the server goes on, says so once, and counts and marks what is missing.

%s in it has no meaning.`},
	{Name: "treefiles", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.TreeFiles },
		Help: `Keep each block of 4096 bytes in a file of its own, in a tree of folders below exportname. It needs filesize, the size of the whole. Blocks that were never written have no file. It goes before multifile.`},
	{Name: "trim", Kind: Bool, Default: "true where it can be done", field: func(_ *Generic, x *Export) any { return &x.Trim },
		Help: `Offer NBD_CMD_TRIM, with which a client gives up space. An explicit false is obeyed, with a warning.`},
	{Name: "virtstyle", Kind: String, Default: "ipliteral", field: func(_ *Generic, x *Export) any { return &x.VirtStyle },
		Help: `How a %s in exportname becomes the client's address, so that each client has a file of its own. ipliteral is the address as it is: 192.168.1.100 or 2001:db8::39. iphash has slashes in place of the dots of an IPv4 address: 192/168/1/100. cidrhash N is the network with a prefix of N bits, a slash, and the address: for N = 26, 192.168.1.64/192.168.1.100. none leaves %s as it is. A client on a unix socket is "unix", one on vsock "vsock-CID".

All connections of one client use one device, which is opened for the first and closed behind the last.`},
	{Name: "waitfile", Kind: String, field: func(_ *Generic, x *Export) any { return &x.WaitFile },
		Help: `Keep what is written in another file, the diff, until the server gets the signal SIGUSR1; then merge it into the file while clients go on. The file need not exist before that, if filesize is given: what was not written by then cannot be read. So an export can move to this server while it is in use. true keeps the diff beside the file, or in cowdir, with .wait behind the file's name; anything else is the path of the diff. A diff that is there already is gone on with. A server that is started again waits again, for a signal of its own, also if everything had been merged before; a merge that was cut off when it ended is completed at once. So take the key out of the configuration when the export has moved.

Only exports that are open are merged: one with a %s, prerun or postrun is open while it has clients.`},
}
