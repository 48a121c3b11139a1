package nbdconf

import (
	"math"
	"strings"

	"nbd.example/nbd/proto"
)

// forced returns the key of [generic] that demands TLS, and its place.
func (g *Generic) forced() (key string, pos Pos) {
	key = "force_tls"
	if !g.ForceTLS {
		key = "tlsonly"
	}
	return key, g.where[key]
}

// checkLimits looks at the limits of [generic]. 0 is always the default.
func (l *loader) checkLimits(g *Generic) {
	m := &g.Limits
	for _, k := range []struct {
		name        string
		value       int64
		least, most int64
	}{
		{"maxconnections_total", int64(m.MaxConnections), 1, math.MaxInt64},
		{"maxconnections_client", int64(m.MaxPerClient), 1, math.MaxInt64},
		{"maxrequests", int64(m.MaxRequests), 1, math.MaxInt64},
		{"maxmemory", m.MaxMemory, 8 << 20, math.MaxInt64},
		{"maxpayload", m.MaxPayload, proto.DefaultMaxPayload, 1 << 30},
		{"handshake_timeout", int64(m.HandshakeTimeout), -1, math.MaxInt64},
		{"stuck_timeout", int64(m.StuckTimeout), -1, math.MaxInt64},
	} {
		if k.value == 0 || k.value >= k.least && k.value <= k.most {
			continue
		}
		if k.value < k.least {
			l.problems.add(g.where[k.name], Error, "%s in [generic] must be at least %d, not %d", k.name, k.least, k.value)
		} else {
			l.problems.add(g.where[k.name], Error, "%s in [generic] must be at most %d, not %d", k.name, k.most, k.value)
		}
	}
	if m.MaxPayload%proto.MaxMinBlock != 0 {
		l.problems.add(g.where["maxpayload"], Error, "maxpayload in [generic] must be a multiple of %d, the largest minblock", proto.MaxMinBlock)
	}
	if m.MaxMemory != 0 && g.Swap {
		l.problems.add(g.where["maxmemory"], Warning, "maxmemory has no effect with swap, which bounds it to 8 MiB")
	}
}

// warnOfFalse says what clients miss where a configuration takes from them what could be had.
func (l *loader) warnOfFalse(x *Export) {
	for _, k := range []struct {
		name   string
		value  Tri
		misses string
	}{
		{"flush", x.Flush, "clients cannot make writes stable, and may lose data that they believe safe"},
		{"fua", x.FUA, "clients cannot make a single write stable, and flush everything instead"},
		{"trim", x.Trim, "clients cannot give back the space of what they delete"},
	} {
		if k.value == False {
			l.problems.add(x.Where(k.name), Warning, "%s = false in [%s]: %s", k.name, x.Name, k.misses)
		}
	}
}

// checkStorage looks at the keys that say what is served.
func (l *loader) checkStorage(x *Export) {
	complain := func(key string, s Severity, text string) {
		l.problems.add(x.Where(key), s, "%s in [%s] %s", key, x.Name, text)
	}
	x.WaitFile = waitFile(x.WaitFile)
	wait := x.WaitFile != ""
	switch {
	case x.TreeFiles && x.MultiFile:
		complain("multifile", Warning, "has no effect with treefiles")
		x.MultiFile = false
	case x.Temporary && x.TreeFiles:
		complain("temporary", Error, "cannot go with treefiles: a new file is no tree")
	case x.Temporary && x.MultiFile:
		complain("temporary", Error, "cannot go with multifile: a new file is only one")
	case x.Temporary && x.FileSize == 0:
		complain("temporary", Error, "needs filesize, the size of the new file in bytes")
	case x.TreeFiles && x.FileSize == 0:
		complain("treefiles", Error, "needs filesize, the size of the whole in bytes")
	}
	switch {
	case wait && x.CopyOnWrite:
		complain("waitfile", Error, "cannot go with copyonwrite: what is written is either kept or dropped")
	case wait && x.Temporary:
		complain("waitfile", Error, "cannot go with temporary: there is nothing to merge into")
	case wait && x.ReadOnly:
		complain("waitfile", Warning, "has no effect with readonly")
	case x.CopyOnWrite && x.ReadOnly:
		complain("copyonwrite", Warning, "has no effect with readonly")
	}
	if x.COWDir != "" && !x.CopyOnWrite && !wait {
		complain("cowdir", Warning, "has no effect without copyonwrite or waitfile")
	}
	if x.given("virtstyle") {
		if _, err := ParseVirtStyle(x.VirtStyle); err != nil {
			l.problems.add(x.Where("virtstyle"), Error, "virtstyle in [%s]: %v", x.Name, err)
		}
	}
}

// waitFile brings the value of waitfile into one form. In the reference's manual it
// is a string, in its program a boolean.
func waitFile(value string) string {
	switch strings.TrimRight(value, space) {
	case "", "false", "0":
		return ""
	case "true", "1":
		return "true"
	}
	return value
}

// checkAccess looks at the keys that say who is served, and how.
func (l *loader) checkAccess(x *Export) {
	if x.Timeout < 0 {
		l.problems.add(x.Where("timeout"), Warning, "timeout in [%s] is below 0; taking none", x.Name)
		x.Timeout = 0
	}
	x.ListenAddr = splitHosts(x.ListenAddr)
	if m := x.MinBlock; m < 0 || m > proto.MaxMinBlock || m&(m-1) != 0 {
		l.problems.add(x.Where("minblock"), Error, "minblock in [%s] must be a power of two up to %d, not %d", x.Name, proto.MaxMinBlock, m)
	}
	if err := proto.CheckString([]byte(x.Description)); err != nil {
		l.problems.add(x.Where("description"), Error, "description in [%s]: %v", x.Name, err)
	}
	if len(x.ListenAddr) == 1 && x.ListenAddr[0] == "(null)" {
		x.ListenAddr = nil // the reference writes that for an address that was not given
	}
	if x.DataLog && x.TransactionLog == "" {
		l.problems.add(x.Where("datalog"), Warning, "datalog in [%s] has no effect without transactionlog", x.Name)
	}
	x.Port = strings.TrimRight(x.Port, space)
}

// checkAll looks at keys that depend on those of other sections.
func (l *loader) checkAll() {
	g := &l.config.Generic
	old, hooks := false, false
	for _, x := range l.config.Exports {
		hooks = hooks || x.PreRun != "" || x.PostRun != ""
		old = old || x.Port != ""
		l.checkAntique(x)
	}
	if g.OldStyle && !old {
		l.problems.add(g.where["oldstyle"], Error, "oldstyle, but no export has a port to be served on; give one to each export that antique clients need, or remove oldstyle")
	}
	if g.RunUser != "" && !hooks {
		l.problems.add(g.where["run_user"], Warning, "run_user has no effect: no export has prerun or postrun")
	}
}

// checkAntique looks at the keys for antique clients.
func (l *loader) checkAntique(x *Export) {
	g := &l.config.Generic
	switch {
	case g.OldStyle && x.Port != "" && (x.DemandsTLS() || g.DemandsTLS()):
		l.problems.add(x.Where("port"), Error, "port in [%s] is for antique clients, which know no TLS, but the export demands it; remove one of the two", x.Name)
	case g.OldStyle && x.Port == "" && len(x.ListenAddr) > 0:
		l.problems.add(x.Where("listenaddr"), Warning, "listenaddr in [%s] has no effect without port", x.Name)
	case g.OldStyle:
	case x.Port != "":
		l.problems.add(x.Where("port"), Warning, "port in [%s] has no effect without oldstyle in [generic]: clients ask for the export by its name; for clients of before 2011, which cannot, add oldstyle = true there", x.Name)
	case len(x.ListenAddr) > 0:
		l.problems.add(x.Where("listenaddr"), Warning, "listenaddr in [%s] has no effect: all exports are served on the addresses of [generic]", x.Name)
	}
}
