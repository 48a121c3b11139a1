package nbdcmd

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"nbd.example/nbd/internal/control"
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
	table(w, [][]string{
		{"program", cell(s.Program)},
		{"process", fmt.Sprint(s.PID)},
		{"since", s.Since.Local().Format(time.RFC3339)},
		{"configuration", cell(strings.Join(s.Config, ", "))},
		{"exports", fmt.Sprint(s.Exports)},
		{"connections", fmt.Sprint(s.Connections)},
	})
}

func printExports(w io.Writer, list []control.Export) {
	rows := [][]string{{"NAME", "STATE", "CLIENTS", "SIZE", "MODE", "SOURCE", "FROM"}}
	for _, x := range list {
		size, mode := "-", "rw"
		if x.Size >= 0 {
			size = count(uint64(x.Size))
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
		rows = append(rows, []string{name, x.State, clients, size, mode, cell(x.Source), cell(x.Origin)})
	}
	table(w, rows)
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
		if c.TLSPeer != "" {
			tls += " " + c.TLSPeer
		}
		rows = append(rows, []string{fmt.Sprint(c.ID), cell(c.Client), export, age(c.Since, now), cell(tls),
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
	if !some {
		fmt.Fprintln(w, "nothing has changed")
	}
}
