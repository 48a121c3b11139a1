package nbdtab

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"nbd.example/nbd/internal/clientflags"
)

func mustParse(t *testing.T, text string) *Table {
	t.Helper()
	table, err := Parse(strings.NewReader(text), "nbdtab")
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// TestManual reads the example of the reference's manual, and what Debian installs.
func TestManual(t *testing.T) {
	table := mustParse(t, `# This file configures NBD devices for use with nbd-client.
# swap space, called "swapexport" on the server
# optimize for swap, and try to reconnect upon disconnect.
nbd0 nbdserver.example.com swapexport swap,persist
# other export, called "data" on the server. No options for this one.

nbd1	nbdserver.example.com 	data
`)
	if len(table.Entries) != 2 || len(table.Warnings) != 0 {
		t.Fatalf("%+v", table)
	}
	for i, want := range []clientflags.Flags{
		{Device: "/dev/nbd0", Host: "nbdserver.example.com", Name: "swapexport", Swap: true, Persist: true},
		{Device: "/dev/nbd1", Host: "nbdserver.example.com", Name: "data"},
	} {
		e, err := table.Find(fmt.Sprintf("nbd%d", i))
		if err != nil {
			t.Fatal(err)
		}
		f := e.Flags
		if f.Device != want.Device || f.Host != want.Host || f.Name != want.Name || f.Swap != want.Swap || f.Persist != want.Persist {
			t.Errorf("nbd%d: %+v", i, f)
		}
	}
}

func TestOptions(t *testing.T) {
	table := mustParse(t, `nbd0 h x port=7,certfile=/c,keyfile=/k,cacertfile=/a,tlshostname=n,priority=NORMAL,bs=4096,timeout=30,dead-timeout=60,conns=4,no_optgo,persist,swap,tls,_mine,_netdev=1
nbd1 /run/sock x unix,preinit,size=1M
nbd1 h x
nbd2 /run/sock x readonly,identifier=a=b,auto # comment
/dev/nbd3 nbds://h/x auto,on-failure=error
nbd4 [::1]:7
nbd5 h #x opts
`)
	find := func(name string) *clientflags.Flags {
		e, err := table.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		return e.Flags
	}
	f := find("nbd0")
	if f.Port != "7" || f.Cert != "/c" || f.Key != "/k" || f.CA != "/a" || f.TLSHostname != "n" || f.Priority != "NORMAL" || f.BlockSize != 4096 ||
		f.Timeout != 30*time.Second || f.Limit != time.Minute || f.Connections != 4 || !f.NoOptGo || !f.Swap || !f.TLS {
		t.Errorf("nbd0: %+v", f)
	}
	if f = find("nbd2"); !f.Unix || f.Host != "/run/sock" || !f.ReadOnly || f.Identifier != "a=b" || !f.Auto {
		t.Errorf("nbd2: %+v", f)
	}
	if f = find("/dev/nbd3"); len(f.URIs) != 1 || f.URIs[0] != "nbds://h/x" || !f.Auto || f.OnFailure != "error" || f.Device != "/dev/nbd3" {
		t.Errorf("nbd3: %+v", f)
	}
	if f = find("nbd4"); f.Host != "::1" || f.Port != "7" || f.Name != "" {
		t.Errorf("nbd4: %+v", f)
	}
	if f = find("nbd5"); f.Name != "" {
		t.Errorf("nbd5: %+v", f)
	}
	for _, c := range []struct{ device, want string }{
		{"nbd1", "nbdtab:2: -preinit excludes -name: no server is asked for it"},
		{"nbd9", "nbdtab does not describe nbd9; it has nbd0, nbd1, nbd1, nbd2, nbd3, nbd4, nbd5"},
	} {
		if _, err := table.Find(c.device); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %q", c.device, err, c.want)
		}
	}
	if err := table.Entries[2].Err; err == nil || err.Error() != "nbdtab:3: nbd1 is there already, in line 2" {
		t.Errorf("a device that is there twice: %v", err)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct{ line, err, warning string }{
		{"disk h x", `nbdtab:1: "disk" is not the name of an NBD device, which is like nbd0`, ""},
		{"nbd0", "nbdtab:1: the server is missing: a line is made of device, server, export and options", ""},
		{"nbd0 h x a b", `nbdtab:1: "b" is one field too many: options are separated by commas, without blanks`, ""},
		{"nbd0 nbd://h/x y z", `nbdtab:1: "z" is one field too many`, ""},
		{"nbd0 h x timeout", "nbdtab:1: option timeout needs a value: timeout=TIME", ""},
		{"nbd0 h x swap=yes", `nbdtab:1: option swap takes no value, but has "yes"`, ""},
		{"nbd0 h x bs=1000", `nbdtab:1: option bs: "1000" is not 512`, ""},
		{"nbd0 h x conns=0,timeout=x", "nbdtab:1: option conns: \"0\" is not a number from 1 to 128\nnbdtab:1: option timeout:", ""},
		{"nbd0 h x =1", `nbdtab:1: "=1" has no key`, ""},
		{"nbd0 h x sdp", "nbdtab:1: -sdp: Linux has no Sockets Direct Protocol any more", ""},
		{"nbd0 h:x y", `nbdtab:1: port "x" is not a number`, ""},
		{"nbd0 h x timout=3,swap", "", `nbdtab:1: unknown option "timout" has no effect; did you mean "timeout"?`},
		{"nbd0 h x qqqq", "", `nbdtab:1: unknown option "qqqq" has no effect`},
		{"nbd0 h x ,swap,", "", ""},
	} {
		table := mustParse(t, c.line)
		if len(table.Entries) != 1 {
			t.Errorf("%s: %d entries", c.line, len(table.Entries))
			continue
		}
		text := ""
		if err := table.Entries[0].Err; err != nil {
			text = err.Error()
		}
		if !strings.HasPrefix(text, c.err) || (text == "") != (c.err == "") {
			t.Errorf("%s: %q, want %q", c.line, text, c.err)
		}
		if got := strings.Join(table.Warnings, "\n"); got != c.warning {
			t.Errorf("%s: warning %q, want %q", c.line, got, c.warning)
		}
	}
	empty := mustParse(t, "# nothing\n")
	if _, err := empty.Find("nbd0"); err == nil || !strings.Contains(err.Error(), "nbdtab describes no device; add a line") {
		t.Errorf("an empty table: %v", err)
	}
}

func TestReading(t *testing.T) {
	if _, err := Parse(iotest.ErrReader(io.ErrUnexpectedEOF), "nbdtab"); err == nil || err.Error() != "nbdtab:1: unexpected EOF" {
		t.Errorf("%v", err)
	}
	if _, err := Parse(strings.NewReader("nbd0 h\n"+strings.Repeat("x", maxLine+1)), "nbdtab"); err == nil || err.Error() != "nbdtab:2: a line of over 65536 bytes" {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("nbd0 nbdserver.example.com swapexport swap,persist\nnbd1 h data # c\n")
	f.Add("nbd0 h x port=7,certfile=/c,bs=4096,_x,,=\nnbd0 nbds://h/x auto\n")
	f.Add("nbd1 /run/sock x unix,preinit\tsize=1M\r\n/dev/nbd2 [::1]:7")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := Parse(strings.NewReader(text), "n")
		if err != nil {
			return
		}
		for _, e := range table.Entries {
			if e.Err == nil && (e.Flags.Host == "") == (len(e.Flags.URIs) == 0) {
				t.Errorf("line %d: accepted without one server: %+v", e.Line, e.Flags)
			}
			if e.Err != nil && !strings.HasPrefix(e.Err.Error(), fmt.Sprintf("n:%d: ", e.Line)) {
				t.Errorf("the error does not name line %d: %v", e.Line, e.Err)
			}
		}
	})
}
