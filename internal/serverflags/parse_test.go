package serverflags

import (
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	at := func(host, port string) *Listen { return &Listen{host, port} }
	for _, c := range []struct {
		line string
		want Flags
	}{
		{"", Flags{}},
		{"1234 /dev/sdb1", Flags{Listen: at("", "1234"), File: "/dev/sdb1"}},
		{"2000 /export/x 10M", Flags{Listen: at("", "2000"), File: "/export/x", Size: 10 << 20}},
		{"2000 /x 10m", Flags{Listen: at("", "2000"), File: "/x", Size: 10 << 20}},
		{"2000 /x 3k", Flags{Listen: at("", "2000"), File: "/x", Size: 3 << 10}},
		{"2000 /x 3K", Flags{Listen: at("", "2000"), File: "/x", Size: 3 << 10}},
		{"2000 /x 4096", Flags{Listen: at("", "2000"), File: "/x", Size: 4096}},
		{"2000 /x 0", Flags{Listen: at("", "2000"), File: "/x"}},
		{"2000 /x 2G", Flags{Listen: at("", "2000"), File: "/x", Size: 2 << 30}},
		{"127.0.0.1@10809 /x", Flags{Listen: at("127.0.0.1", "10809"), File: "/x"}},
		{"127.0.0.1:10809 /x", Flags{Listen: at("127.0.0.1", "10809"), File: "/x"}},
		{"::1@10809 /x", Flags{Listen: at("::1", "10809"), File: "/x"}},
		{"[::1]:10809 /x", Flags{Listen: at("::1", "10809"), File: "/x"}},
		{"[::1]@10809 /x", Flags{Listen: at("::1", "10809"), File: "/x"}},
		{"fe80::1%eth0@nbd /x", Flags{Listen: at("fe80::1%eth0", "nbd"), File: "/x"}},
		{"disk.example@nbd /x", Flags{Listen: at("disk.example", "nbd"), File: "/x"}},
		{"nbd /x", Flags{Listen: at("", "nbd"), File: "/x"}},
		{"-n 10809 memory:1G", Flags{Listen: at("", "10809"), File: "memory:1G", Foreground: true}},
		{"0 /x", Flags{Inetd: true, File: "/x"}},
		{"0 -C /c", Flags{Inetd: true, Config: "/c"}},
		{"-C /c", Flags{Config: "/c"}},
		{"-C/c", Flags{Config: "/c"}},
		{"1 /x -r -c -m", Flags{Listen: at("", "1"), File: "/x", ReadOnly: true, CopyOnWrite: true, MultiFile: true}},
		{"-rcm 1 /x", Flags{Listen: at("", "1"), File: "/x", ReadOnly: true, CopyOnWrite: true, MultiFile: true}},
		{"-r 1 -c /x -m 5", Flags{Listen: at("", "1"), File: "/x", Size: 5, ReadOnly: true, CopyOnWrite: true, MultiFile: true}},
		{"1 /x -l /l -p /p -o sec -M 3", Flags{Listen: at("", "1"), File: "/x", AuthFile: "/l", PIDFile: "/p", Section: "sec", MaxConnections: 3}},
		{"1 /x -rosec", Flags{Listen: at("", "1"), File: "/x", ReadOnly: true, Section: "sec"}},
		{"--read-only --copy-on-write --multi-file --dont-fork", Flags{ReadOnly: true, CopyOnWrite: true, MultiFile: true, Debug: true}},
		{"-read-only -config-file=/c -pid-file /p", Flags{ReadOnly: true, Config: "/c", PIDFile: "/p"}},
		{"--config-file /c --authorize-file=/a --output-config s --max-connection 4", Flags{Config: "/c", AuthFile: "/a", Section: "s", MaxConnections: 4}},
		{"--read --copy --out=zz --max-connections=1", Flags{ReadOnly: true, CopyOnWrite: true, Section: "zz", MaxConnections: 1}},
		{"-d", Flags{Debug: true}},
		{"-V", Flags{Version: true}},
		{"--version", Flags{Version: true}},
		{"-h", Flags{Help: true}},
		{"--help", Flags{Help: true}},
		{"--chains", Flags{Chains: true}},
		{"--check-config", Flags{Check: true}},
		{"--dump-config", Flags{Dump: "keyfile"}},
		{"--dump-config=json -C c", Flags{Dump: "json", Config: "c"}},
		{"--log-format json --log-level=debug", Flags{LogFormat: "json", LogLevel: "debug"}},
		{"unix:/run/s /x 1M", Flags{Address: "unix:/run/s", File: "/x", Size: 1 << 20}},
		{"--listen vsock:1 --listen=:2 vsock:3 /x", Flags{Addresses: []string{"vsock:1", ":2"}, Address: "vsock:3", File: "/x"}},
		{"1 /x -a 60 --oldstyle", Flags{Listen: at("", "1"), File: "/x", Timeout: 60, OldStyle: true}},
		{"1 -- -x", Flags{Listen: at("", "1"), File: "-x"}},
	} {
		got, err := Parse(strings.Fields(c.line))
		if err != nil || !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", c.line, *got, err, c.want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"-x", `unknown option "-x"; --help lists all`},
		{"-rx", `unknown option "-x" in "-rx"; --help lists all`},
		{"-readonly", `unknown option "-e" in "-readonly"; did you mean --read-only?`},
		{"--frob", `"--frob": unknown option; --help lists all`},
		{"--c", `"--c": could be --copy-on-write or --config-file`},
		{"--=x", `"--=x": unknown option; --help lists all`},
		{"--read-only=yes", `option --read-only takes no argument, but got "yes"`},
		{"-C", `option -C needs its argument FILE`},
		{"--config-file=", `option --config-file: its argument is empty`},
		{"-M many", `option -M: "many" is not a number`},
		{"-M -1", `option -M: "-1" is not a number`},
		{"--log-format xml", `option --log-format: "xml" is not one of text, logfmt, json`},
		{"/x 1", `first operand "/x": "/x" is neither a port number nor the name of a service; the first operand is [address@]port, and a file stands behind it`},
		{"70000 /x", `first operand "70000": port 70000 is above 65535`},
		{"99999999999999999999 /x", `first operand "99999999999999999999": port 99999999999999999999 is above 65535`},
		{"::1:10809 /x", `"::1:10809" could be an IPv6 address with or without a port; write "::1@10809"`},
		{"[zz]:1 /x", `"[zz]" in "[zz]:1" is not an IPv6 address in brackets`},
		{"[::1:1 /x", `"[::1" in "[::1:1" is not an IPv6 address in brackets`},
		{"1 /x abc", `size "abc" is not a number of bytes with one of k, M, G, T behind it`},
		{"1 /x 10kk", `size "10kk" is not a number of bytes with one of k, M, G, T behind it`},
		{"1 /x 9999999999G", `size "9999999999G" is too large`},
		{"1 /x 99999999999999999999", `size "99999999999999999999" is too large`},
		{"1 /x 5 6", `"6" is one operand too many; the operands are [address@]port file [size]`},
		{"-x 1 /x abc", "unknown option \"-x\"; --help lists all\nsize \"abc\" is not"},
	} {
		_, err := Parse(strings.Fields(c.line))
		if err == nil || !strings.HasPrefix(err.Error()+"\n", c.want) {
			t.Errorf("%s: got %v, want %s", c.line, err, c.want)
		}
	}
}

// TestOptions checks that the table is consistent and that help has all of it.
func TestOptions(t *testing.T) {
	var b strings.Builder
	if err := writeHelp(&b, "linux", ""); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, o := range Options() {
		for _, name := range []string{o.Long, string(o.Short)} {
			if name != "\x00" && seen[name] {
				t.Errorf("two options are called %q", name)
			}
			seen[name] = true
		}
		if !strings.Contains(b.String(), "  "+o.Forms()+"\n        "+o.Help+"\n") {
			t.Errorf("help lacks %q", o.Forms())
		}
		_, isBool := o.field(&Flags{}).(*bool)
		if isBool != (o.Arg == "") {
			t.Errorf("--%s: its field does not fit its argument %q", o.Long, o.Arg)
		}
		if strings.HasPrefix(o.Arg, "[") && o.words == nil {
			t.Errorf("--%s: nothing is meant if its argument is left out", o.Long)
		}
	}
}

// TestFiles: Windows has its own place for the files of programs, and help says so.
func TestFiles(t *testing.T) {
	for _, c := range []struct{ system, data, config, auth string }{
		{"linux", `C:\Data`, "/etc/nbd-server/config", "/etc/nbd-server/allow"},
		{"windows", `D:\Data`, `D:\Data\nbd-server\config`, `D:\Data\nbd-server\allow`},
		{"windows", "", `C:\ProgramData\nbd-server\config`, `C:\ProgramData\nbd-server\allow`},
	} {
		config, auth := files(c.system, c.data)
		if config != c.config || auth != c.auth {
			t.Errorf("%s with %q: %s and %s, want %s and %s", c.system, c.data, config, auth, c.config, c.auth)
		}
		var b strings.Builder
		if err := writeHelp(&b, c.system, c.data); err != nil {
			t.Fatal(err)
		}
		help := b.String()
		if !strings.Contains(help, "instead of "+c.config+"\n") || !strings.Contains(help, "instead of "+c.auth+"\n") {
			t.Errorf("%s: help does not name %s and %s", c.system, c.config, c.auth)
		}
		if windows := c.system == "windows"; strings.Contains(help, "nbd-server service") != windows || strings.Contains(help, "/etc/") == windows {
			t.Errorf("%s: help is that of another system:\n%s", c.system, help)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"1234 /dev/sdb1", "::1@1 /x 10M -rcm -l\x00l", "-C\x00/c\x000", "--dump-config=json", "[::1]:1\x00--\x00-x"} {
		f.Add(strings.ReplaceAll(s, " ", "\x00"))
	}
	f.Fuzz(func(t *testing.T, line string) {
		got, err := Parse(strings.Split(line, "\x00"))
		if err == nil && (got.Size < 0 || got.MaxConnections < 0 || got.Inetd && got.Listen != nil) {
			t.Errorf("%q: accepted as %+v", line, got)
		}
	})
}
