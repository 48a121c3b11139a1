package nbdcmd

import (
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/internal/control"
)

func TestCells(t *testing.T) {
	for in, want := range map[string]string{
		"": "-", "-": `"-"`, "a": "a", "a b": `"a b"`, "a\x1b[31m": `a\x1b[31m`, "a\tb": `"a\tb"`, "ä": "ä", "a\xff": `"a\xff"`, `a"b`: `"a\"b"`,
	} {
		if in == "a\x1b[31m" {
			want = `"a\x1b[31m"`
		}
		if got := cell(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[uint64]string{0: "0", 1023: "1023", 1024: "1.0K", 1536: "1.5K", 1<<20 - 1: "1.0M", 5 << 30: "5.0G", 1<<64 - 1: "16.0E"} {
		if got := count(in); got != want {
			t.Errorf("%d: %s, want %s", in, got, want)
		}
	}
	now := time.Now()
	for in, want := range map[time.Duration]string{-time.Second: "0s", 1500 * time.Millisecond: "1s", 90 * time.Minute: "1h30m0s", 50 * time.Hour: "2d2h"} {
		if got := age(now.Add(-in), now); got != want {
			t.Errorf("%v: %s, want %s", in, got, want)
		}
	}
}

func TestTables(t *testing.T) {
	var b strings.Builder
	printExports(&b, []control.Export{
		{Name: "", State: "serving", Clients: 1, Size: 1 << 20, MaxConnections: 2, Source: "/srv/a b", Origin: "command line"},
		{Name: "x", State: "out of order", Size: -1, ReadOnly: true, TLS: true},
	})
	now := time.Now()
	printConnections(&b, []control.Connection{
		{ID: 1, Client: "10.0.0.1:5", Export: "x", Phase: "transmission", Since: now, TLS: "TLS 1.3", TLSPeer: "me", Read: 2048, Requests: 7, Errors: 1, InFlight: 3},
		{ID: 2, Client: "unix", Phase: "handshake", Since: now},
		{ID: 3, Client: "unix", Phase: "transmission", Since: now},
	}, now)
	printChanges(&b, &control.Changes{Added: []string{"a"}, Pending: []string{"b c"}})
	printChanges(&b, &control.Changes{Kept: []string{"a"}})
	want := `NAME  STATE         CLIENTS  SIZE  MODE    SOURCE      FROM
""    serving       1/2      1.0M  rw      "/srv/a b"  "command line"
x     out of order  0        -     ro,tls  -           -
ID  CLIENT      EXPORT       AGE  TLS           READ  WRITTEN  REQUESTS  ERRORS  IN FLIGHT
1   10.0.0.1:5  x            0s   "TLS 1.3 me"  2.0K  0        7         1       3
2   unix        (handshake)  0s   -             0     0        0         0       0
3   unix        ""           0s   -             0     0        0         0       0
"a": added
"b c": pending, until the clients that are there have left
nothing has changed
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestWrap(t *testing.T) {
	text := strings.Repeat("word ", 40) + "\n\n" + strings.Repeat("x", 100) + " y"
	for line := range strings.Lines(wrap(text)) {
		if len(line) > 80 && !strings.HasPrefix(line, "xxx") {
			t.Errorf("%d bytes: %s", len(line), line)
		}
	}
	if got := wrap("a\n b\n\nc"); got != "a b\n\nc" {
		t.Errorf("%q", got)
	}
}
