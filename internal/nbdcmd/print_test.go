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
		{Name: "x", State: "out of order", Size: -1, ReadOnly: true, TLS: true, Merge: &control.Merge{State: "collecting", Waiting: 1536}},
		{Name: "y", State: "serving", Size: -1, FlushFailures: 2, Merge: &control.Merge{State: "merged"}},
		{Name: "z", State: "serving", Size: -1, Merge: &control.Merge{State: "merging", Waiting: 512, Error: "no space"}},
	})
	now := time.Now()
	printConnections(&b, []control.Connection{
		{ID: 1, Client: "10.0.0.1:5", Export: "x", Phase: "transmission", Since: now, TLS: "TLS 1.3", TLSPeer: "me", Read: 2048, Requests: 7, Errors: 1, InFlight: 3},
		{ID: 2, Client: "unix", Phase: "handshake", Since: now, Process: &control.Process{PID: 7, UID: 8, GID: 9}},
		{ID: 3, Client: "unix", Phase: "transmission", Since: now},
		{ID: 4, Client: "unix", Export: "x", Phase: "closing", Since: now},
	}, now)
	printChanges(&b, &control.Changes{Added: []string{"a"}, Pending: []string{"b c"}})
	printChanges(&b, &control.Changes{Kept: []string{"a"}})
	printChanges(&b, &control.Changes{Kept: []string{"a"}, Listening: []string{"[::]:1", "/s"}})
	printMerges(&b, nil, false)
	printMerges(&b, []control.Merge{{Export: "a", State: "collecting", Waiting: 2048}, {Export: "b", State: "merged"}}, false)
	printMerges(&b, []control.Merge{{Export: "a", State: "merged"}}, true)
	if err := printSection(&b, &control.Section{Name: "a", State: "pending", Origin: "c.conf:5", Keys: map[string]string{"authfile": " x", "exportname": "y"}}); err != nil {
		t.Error(err)
	}
	want := `NAME  STATE                       CLIENTS  SIZE  MODE    WAITFILE            SOURCE      FROM
""    serving                     1/2      1.0M  rw      -                   "/srv/a b"  "command line"
x     out of order                0        -     ro,tls  collecting,1.5K     -           -
y     serving, flushes failed: 2  0        -     rw      merged              -           -
z     serving                     0        -     rw      merging,512,failed  -           -
ID  CLIENT                  EXPORT       AGE  TLS           READ  WRITTEN  REQUESTS  ERRORS  IN FLIGHT
1   10.0.0.1:5              x            0s   "TLS 1.3 me"  2.0K  0        7         1       3
2   unix,pid=7,uid=8,gid=9  (handshake)  0s   -             0     0        0         0       0
3   unix                    ""           0s   -             0     0        0         0       0
4   unix                    x (closing)  0s   -             0     0        0         0       0
"a": added
"b c": pending, until the clients that are there have left
nothing has changed
listening now on [::]:1, /s
there is nothing to merge: no export that is open has waitfile
"a": begun, with 2.0K to merge; "nbd ctl list" tells how far it is, the server's log the end
"b": merged
"a": merged
# from c.conf:5
# pending: the clients that are there have other settings until they leave
[a]
	exportname = y
	authfile = \sx
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	printStatus(&b, &control.Status{
		Program: "p", PID: 7, Since: now, Listening: []string{"[::]:10809", "/run/s"},
		Busy:            &now,
		Reload:          &control.Reload{At: now, Error: "c.conf:5: bad\nc.conf:6: bad, too"},
		TransactionLogs: []control.TransactionLog{{File: "/log"}, {File: "/log2", Lost: 3}},
	})
	for _, want := range []string{`"[::]:10809, /run/s"`, "NOT taken over", "busy ", "c.conf:5: bad; c.conf:6: bad, too", "/log\n", "/log2, 3 records LOST\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the status lacks %q:\n%s", want, b.String())
		}
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
