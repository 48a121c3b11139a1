package nbdcmd

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"nbd.example/nbd/internal/control"
	"nbd.example/nbd/internal/nbdconf"
)

// table writes rows in columns, the head first.
func table(w io.Writer, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	t.Flush()
}

// cell makes a name or a text from a client safe for a terminal and a table. Nothing
// is "-".
func cell(s string) string {
	if s == "" {
		return "-"
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\ufffd' || r == '"' }) || s == "-" {
		return fmt.Sprintf("%q", s)
	}
	return strings.Trim(fmt.Sprintf("%q", s), `"`)
}

// count writes bytes as people read them.
func count(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprint(n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1023.95 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f%c", v, units[i])
}

// age writes how long ago something was.
func age(since, now time.Time) string {
	d := max(now.Sub(since), 0).Truncate(time.Second)
	if days := d / (24 * time.Hour); days > 0 {
		return fmt.Sprintf("%dd%dh", days, d%(24*time.Hour)/time.Hour)
	}
	return d.String()
}

func printStatus(w io.Writer, s *control.Status) {
	rows := [][]string{
		{"program", cell(s.Program)},
		{"process", fmt.Sprint(s.PID)},
		{"since", s.Since.Local().Format(time.RFC3339)},
		{"configuration", cell(strings.Join(s.Config, ", "))},
		{"listening", cell(strings.Join(s.Listening, ", "))},
		{"exports", fmt.Sprint(s.Exports)},
		{"connections", fmt.Sprint(s.Connections)},
	}
	if r := s.Reload; r != nil {
		how := "taken over"
		if r.Error != "" {
			how = "NOT taken over, the earlier configuration is in force: " + strings.ReplaceAll(r.Error, "\n", "; ")
		}
		rows = append(rows, []string{"reload", r.At.Local().Format(time.RFC3339) + ", " + how})
	}
	if s.Busy != nil {
		rows = append(rows, []string{"busy", "since " + s.Busy.Local().Format(time.RFC3339) + " with a reload, or a change"})
	}
	for _, l := range s.TransactionLogs {
		text := cell(l.File)
		if l.Lost > 0 {
			text += fmt.Sprintf(", %d records LOST", l.Lost)
		}
		rows = append(rows, []string{"transaction log", text})
	}
	table(w, rows)
}

func printExports(w io.Writer, list []control.Export) {
	rows := [][]string{{"NAME", "STATE", "CLIENTS", "SIZE", "MODE", "WAITFILE", "SOURCE", "FROM"}}
	for _, x := range list {
		size, mode := "-", "rw"
		if x.Size >= 0 {
			size = count(uint64(x.Size))
		}
		if x.FlushFailures > 0 {
			x.State += fmt.Sprintf(", flushes failed: %d", x.FlushFailures)
		}
		if x.ReadOnly {
			mode = "ro"
		}
		if x.TLS {
			mode += ",tls"
		}
		clients := fmt.Sprint(x.Clients)
		if x.MaxConnections > 0 {
			clients += fmt.Sprintf("/%d", x.MaxConnections)
		}
		name := cell(x.Name)
		if x.Name == "" {
			name = `""` // the default export
		}
		rows = append(rows, []string{name, x.State, clients, size, mode, waitfile(x.Merge), cell(x.Source), cell(x.Origin)})
	}
	table(w, rows)
}

// waitfile tells how far a waitfile is merged.
func waitfile(m *control.Merge) string {
	switch {
	case m == nil:
		return "-"
	case m.Error != "":
		return m.State + "," + count(uint64(m.Waiting)) + ",failed"
	case m.State == "merged":
		return m.State
	}
	return m.State + "," + count(uint64(m.Waiting))
}

// printMerges tells what has become of merges, or that they have begun.
func printMerges(w io.Writer, list []control.Merge, ended bool) {
	if len(list) == 0 {
		fmt.Fprintln(w, "there is nothing to merge: no export that is open has waitfile")
	}
	for _, m := range list {
		text := fmt.Sprintf("begun, with %s to merge; \"nbd ctl list\" tells how far it is, the server's log the end", count(uint64(m.Waiting)))
		if ended || m.State == "merged" {
			text = "merged"
		}
		fmt.Fprintf(w, "%q: %s\n", m.Export, text)
	}
}

// printSection prints a section as a configuration file has it.
func printSection(w io.Writer, s *control.Section) error {
	fmt.Fprintf(w, "# from %s\n", cell(s.Origin))
	if s.State == "pending" {
		fmt.Fprintln(w, "# pending: the clients that are there have other settings until they leave")
	}
	return nbdconf.WriteValues(w, s.Name, s.Keys)
}

func printConnections(w io.Writer, list []control.Connection, now time.Time) {
	rows := [][]string{{"ID", "CLIENT", "EXPORT", "AGE", "TLS", "READ", "WRITTEN", "REQUESTS", "ERRORS", "IN FLIGHT"}}
	for _, c := range list {
		export, tls := cell(c.Export), c.TLS
		switch {
		case c.Phase == "handshake":
			export = "(handshake)"
		case c.Export == "":
			export = `""`
		}
		if c.Phase == "closing" {
			export += " (closing)"
		}
		if c.TLSPeer != "" {
			tls += " " + c.TLSPeer
		}
		client := cell(c.Client)
		if p := c.Process; p != nil {
			client += fmt.Sprintf(",pid=%d,uid=%d,gid=%d", p.PID, p.UID, p.GID)
		}
		rows = append(rows, []string{fmt.Sprint(c.ID), client, export, age(c.Since, now), cell(tls),
			count(c.Read), count(c.Written), fmt.Sprint(c.Requests), fmt.Sprint(c.Errors), fmt.Sprint(c.InFlight)})
	}
	table(w, rows)
}

func printChanges(w io.Writer, c *control.Changes) {
	some := false
	for _, part := range []struct {
		names []string
		text  string
	}{
		{c.Added, "added"}, {c.Removed, "removed"}, {c.Changed, "changed"},
		{c.Pending, "pending, until the clients that are there have left"}, {c.Healed, "healed"},
	} {
		for _, n := range part.names {
			some = true
			fmt.Fprintf(w, "%q: %s\n", n, part.text)
		}
	}
	if len(c.Listening) > 0 {
		some = true
		fmt.Fprintln(w, "listening now on "+strings.Join(c.Listening, ", "))
	}
	if !some {
		fmt.Fprintln(w, "nothing has changed")
	}
}
