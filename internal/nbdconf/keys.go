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
	{Name: "duallisten", Kind: Bool, field: func(g *Generic, _ *Export) any { return &g.DualListen },
		Help: `Listen on TCP although unixsock is set.`},
	{Name: "force_tls", Kind: Bool, field: func(g *Generic, _ *Export) any { return &g.ForceTLS },
		Help: `Refuse everything but TLS, in every export (the protocol's FORCEDTLS mode). Without it, but with keyfile, TLS is offered, and demanded only for exports that have force_tls themselves.`},
	{Name: "group", Kind: String, field: func(g *Generic, _ *Export) any { return &g.Group },
		Help: `The group, by name or number, that the server changes to together with user.`},
	{Name: "includedir", Kind: String, field: func(g *Generic, _ *Export) any { return &g.IncludeDir },
		Help: `A folder. Every file in it whose name ends in .conf is read as a part of this file, in the order of their names. Such files hold exports only: no [generic]. The folder must exist.`},
	{Name: "keyfile", Kind: String, field: func(g *Generic, _ *Export) any { return &g.KeyFile },
		Help: `The PEM file of the server's private key. It switches TLS on. It is read before the server changes to user, and again, as that user, on SIGHUP: if user may not read it, the reload fails and the earlier key stays in use.`},
	{Name: "listenaddr", Kind: List, Default: "all addresses, IPv4 and IPv6", field: func(g *Generic, _ *Export) any { return &g.ListenAddr },
		Help: `The addresses to listen on, separated by commas. 0.0.0.0 stands for all IPv4 addresses, :: for all IPv6 addresses. Of a host name the first address is taken.`},
	{Name: "max_threads", Kind: Int, Default: "32", field: func(g *Generic, _ *Export) any { return &g.MaxThreads },
		Help: `How many requests of one connection may wait for the disk at the same time. What is answered from the page cache needs no thread.`},
	{Name: "oldstyle", Kind: Bool, field: func(g *Generic, _ *Export) any { return &g.OldStyle },
		Help: `Must be false or absent: the protocol of before 2011 is not spoken.`},
	{Name: "port", Kind: String, Default: "10809", field: func(g *Generic, _ *Export) any { return &g.Port },
		Help: `The TCP port to listen on, a number or the name of a service.`},
	{Name: "splice", Kind: Bool, Status: Ignored,
		Help: `Accepted without effect here and in exports: the server chooses by itself how it moves data without copying.`},
	{Name: "tlsprio", Kind: String, Default: "TLS 1.2 and 1.3", field: func(g *Generic, _ *Export) any { return &g.TLSPrio },
		Help: `A priority string of GnuTLS. Only what it says of versions is understood (as -VERS-TLS-ALL:+VERS-TLS1.2); of anything else the server says that it has no effect. Versions below 1.2 are never spoken.`},
	{Name: "unixsock", Kind: String, field: func(g *Generic, _ *Export) any { return &g.UnixSock },
		Help: `The path of a unix socket to listen on. With it there is no TCP listener, unless duallisten is set. A socket that a dead server left is replaced; one that is in use, or anything that is not a socket, is left alone.`},
	{Name: "user", Kind: String, field: func(g *Generic, _ *Export) any { return &g.User },
		Help: `The user, by name or number, that the server changes to after it has opened its sockets and keys, and before it opens exports. A server that was not started by root stays who it is, and says so.`},
}

var exportKeys = []Key{
	{Name: "authfile", Kind: String, field: func(_ *Generic, x *Export) any { return &x.AuthFile },
		Help: `A file of those who may use the export: on each line an address or a network in CIDR form; what follows a # is a comment. If the file does not exist, everybody may; if it is empty, nobody. It is read at the start and on SIGHUP. Clients on a unix socket have no address and are let in: there the rights of the socket decide.`},
	{Name: "copyonwrite", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.CopyOnWrite },
		Help: `Each connection writes to a diff of its own, which is gone when the connection ends. The file itself is never written.`},
	{Name: "cowdir", Kind: String, Default: "the folder of the file", field: func(_ *Generic, x *Export) any { return &x.COWDir },
		Help: `The folder for the diffs of copyonwrite.`},
	{Name: "datalog", Kind: Bool, Status: NotYet, Help: `Not supported yet: written data in the transactionlog.`},
	{Name: "exportname", Kind: String, field: func(_ *Generic, x *Export) any { return &x.ExportName },
		Help: `What is served; required. The absolute path of a file or block device, or a chain: the name of a back end or layer, a colon and its arguments, such as memory:1G. With temporary, a template for the name of the file. (In the protocol's terms the name of the export is that of the section.)`},
	{Name: "filesize", Kind: Size, Default: "the size of the file", field: func(_ *Generic, x *Export) any { return &x.FileSize },
		Help: `How many bytes are served. A file that exists must be at least as long. One that does not exist is created with this size.`},
	{Name: "flush", Kind: Bool, Default: "true where it can be done", field: func(_ *Generic, x *Export) any { return &x.Flush },
		Help: `Offer NBD_CMD_FLUSH. An explicit false is obeyed, with a warning: then a client's fsync does nothing.

The reference has false as its default.`},
	{Name: "force_tls", Kind: Bool, field: func(_ *Generic, x *Export) any { return &x.ForceTLS },
		Help: `Serve, and list, this export over TLS only.`},
	{Name: "fua", Kind: Bool, Default: "true where it can be done", field: func(_ *Generic, x *Export) any { return &x.FUA },
		Help: `Offer writes that are stable when they are answered (NBD_CMD_FLAG_FUA). An explicit false is obeyed.`},
	{Name: "listenaddr", Kind: String, Status: Ignored,
		Help: `Accepted without effect: files that were made by the -o option have it.`},
	{Name: "maxconnections", Kind: Int, Default: "no limit", field: func(_ *Generic, x *Export) any { return &x.MaxConnections },
		Help: `How many connections the export may have at the same time.`},
	{Name: "multifile", Kind: Bool, Status: NotYet, Help: `Not supported yet: one export made of the files exportname.0, exportname.1 and so on.`},
	{Name: "postrun", Kind: String, Status: NotYet, Help: `Not supported yet: a command that runs after a client has gone.`},
	{Name: "prerun", Kind: String, Status: NotYet, Help: `Not supported yet: a command that runs before a client is served.`},
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
	{Name: "timeout", Kind: Int, Status: NotYet, Help: `Not supported yet: end connections that were idle for so many seconds.`},
	{Name: "tlsonly", Kind: Bool, Status: NotYet, Help: `Not supported: write force_tls, which is what the reference obeys, too.`},
	{Name: "transactionlog", Kind: String, Status: NotYet, Help: `Not supported yet: a file that records every request.`},
	{Name: "treefiles", Kind: Bool, Status: NotYet, Help: `Not supported yet: one export made of many small files in a tree of folders.`},
	{Name: "trim", Kind: Bool, Default: "true where it can be done", field: func(_ *Generic, x *Export) any { return &x.Trim },
		Help: `Offer NBD_CMD_TRIM, with which a client gives up space. An explicit false is obeyed.`},
	{Name: "virtstyle", Kind: String, Default: "ipliteral", Status: NotYet,
		Help: `How a %s in exportname becomes the client's address. Only none is supported yet, which leaves it as it is; the other styles are accepted where there is no %s.`},
	{Name: "waitfile", Kind: String, Status: NotYet, Help: `Not supported yet: collect writes until SIGUSR1.`},
}
