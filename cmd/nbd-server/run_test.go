package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/internal/opener"
)

// try runs the program in this process, in folder dir, and returns its status and
// what it says.
func try(t *testing.T, dir string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	out, errs := file("out"), file("err")
	env := &environment{
		stdin: file("in"), stdout: out, stderr: errs,
		getenv: func(string) string { return "" }, open: opener.OS{Dir: dir},
	}
	status = run(t.Context(), args, env)
	read := func(f *os.File) string {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return status, read(out), read(errs)
}

// write writes a file in dir, and returns its path.
func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRunTexts(t *testing.T) {
	for _, c := range []struct {
		args        []string
		status      int
		stdout, err string // what these contain
	}{
		{[]string{"--help"}, exitOK, "Usage: nbd-server", ""},
		{[]string{"-V"}, exitOK, "This is nbd-server version ", ""},
		{[]string{"--version"}, exitOK, "This is nbd-server version ", ""},
		{[]string{"--chains"}, exitOK, "memory:SIZE", ""},
		{[]string{"-x"}, exitUsage, "", "nbd-server: unknown option \"-x\"; --help lists all\n"},
		{[]string{"-x", "1", "/f", "size"}, exitUsage, "", "\nnbd-server: size \"size\" is not"},
		{[]string{"--listen", "::1:1", "1", "/f"}, exitUsage, "", "nbd-server: address \"::1:1\": want HOST:PORT"},
		{[]string{"unix:", "/f"}, exitUsage, "", "nbd-server: address \"unix:\": the path is missing"},
		{[]string{"-n", "-C", "none", "foo", "/f"}, exitError, "", `nbd-server: listen on "foo": it is neither the number of a port nor a name of /etc/services`},
		{[]string{"-o", "s"}, exitUsage, "", "nbd-server: -o needs a complete export"},
	} {
		status, out, errs := try(t, t.TempDir(), c.args...)
		if status != c.status || !strings.Contains(out, c.stdout) || !strings.Contains(errs, c.err) || (c.err == "") != (errs == "") {
			t.Errorf("%q: status %d, output %q, errors %q", c.args, status, out, errs)
		}
	}
}

func TestOutputConfig(t *testing.T) {
	const head = "# Where to listen is said in [generic]:\n#\tport = "
	for _, c := range []struct{ args, want string }{
		{"-o foo 10900 /f 10M -r -c -l /allow -p /pid -M 3",
			head + "10900\n[foo]\n\texportname = /f\n\tauthfile = /allow\n\tcopyonwrite = true\n\tfilesize = 10485760\n\tmaxconnections = 3\n\treadonly = true\n"},
		{"-o foo 1.2.3.4@10900 rel",
			head + "10900\n#\tlistenaddr = 1.2.3.4\n[foo]\n\texportname = DIR/rel\n\tauthfile = /etc/nbd-server/allow\n"},
		{"-o mem 1 memory:1024M",
			head + "1\n[mem]\n\texportname = memory:1G\n\tauthfile = /etc/nbd-server/allow\n"},
		{"-o pct 1 /a%s",
			head + "1\n[pct]\n\texportname = /a%s\n\tauthfile = /etc/nbd-server/allow\n"},
		{"-o parts -m -a 60 1 rel 4096",
			head + "1\n[parts]\n\texportname = DIR/rel\n\tauthfile = /etc/nbd-server/allow\n\tfilesize = 4096\n\tmultifile = true\n\ttimeout = 60\n"},
		{"-o inetd 0 /f", head + "0\n[inetd]\n\texportname = /f\n\tauthfile = /etc/nbd-server/allow\n"},
		{"-o unix unix:/s /f --listen :7", "# Where to listen is said in [generic]:\n#\tlisten = :7, unix:/s\n[unix]\n\texportname = /f\n\tauthfile = /etc/nbd-server/allow\n"},
		{"-o old ::1@7 /f --oldstyle", "# Where to listen is said in [generic]:\n#\toldstyle = true\n[old]\n\texportname = /f\n\tauthfile = /etc/nbd-server/allow\n\tlistenaddr = ::1\n\tport = 7\n"},
		{"-o old tcp::7 /f --oldstyle --listen unix:/s", "# Where to listen is said in [generic]:\n#\tlisten = unix:/s\n#\toldstyle = true\n[old]\n\texportname = /f\n\tauthfile = /etc/nbd-server/allow\n\tport = 7\n"},
	} {
		dir := t.TempDir()
		write(t, dir, "rel", "x")
		status, out, errs := try(t, dir, strings.Fields(c.args)...)
		if want := strings.ReplaceAll(c.want, "DIR", dir); status != exitOK || out != want || errs != "" {
			t.Errorf("%s: status %d, errors %q\ngot  %q\nwant %q", c.args, status, errs, out, want)
		}
	}
}

func TestCheckConfig(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		text   string
		check  int // status of --check-config
		dump   int // status of --dump-config
		errors string
	}{
		{"[generic]\n[e]\nexportname = /e\n", exitOK, exitOK, ""},
		{"[generic]\n[e]\nexportname = /e\ntrimm = true\n", exitError, exitOK,
			`nbd-server: CONF:4: unknown key "trimm" in [e]; did you mean "trim"?`},
		{"[generic]\n[e]\nexportname = /e\nflush = false\n", exitOK, exitOK, "nbd-server: warning: CONF:4: flush = false in [e]"},
		{"[generic]\n[e]\nexportname = /e\nfua = false\n", exitOK, exitOK, "nbd-server: warning: CONF:4: fua = false in [e]: clients cannot make a single write stable"},
		{"[generic]\n[e]\nexportname = /e\ntrim = 0\n", exitOK, exitOK, "nbd-server: warning: CONF:4: trim = false in [e]: clients cannot give back"},
		{"[generic]\n[e]\nexportname = /e\nminblock = 3000\n", exitError, exitError, "nbd-server: CONF:4: minblock in [e] must be a power of two up to 65536, not 3000"},
		{"[generic]\n[e]\nexportname = /e\ndescription = " + strings.Repeat("x", 4097) + "\n", exitError, exitError, "nbd-server: CONF:4: description in [e]: "},
		{"[generic]\nmaxmemory = 4096\n[e]\nexportname = /e\n", exitError, exitError, "nbd-server: CONF:2: maxmemory in [generic] must be at least 8388608, not 4096"},
		{"[generic]\nmaxpayload = 33554433\n[e]\nexportname = /e\n", exitError, exitError, "nbd-server: CONF:2: maxpayload in [generic] must be a multiple of 65536"},
		{"[generic]\nstuck_timeout = -2\n[e]\nexportname = /e\n", exitError, exitError, "nbd-server: CONF:2: stuck_timeout in [generic] must be at least -1, not -2"},
		{"[generic]\nport = a\n[e]\nexportname = memery:1G\n", exitError, exitError,
			`nbd-server: CONF:4: exportname: chain "memery:1G", byte 1: unknown back end`},
		{"[generic]\n[e]\nexportname = rel\n", exitError, exitError, "nbd-server: CONF:3: exportname: "},
		{"[generic]\n[e]\nexportname = memory:1G\nsync = true\n", exitError, exitError, "sync is for files"},
		{"[generic]\n[e]\nexportname = /e\nsdp = true\n[f]\n", exitError, exitError, "sdp in [e] is not supported yet"},
		{"[generic]\n", exitError, exitError, "nothing to serve: "},
		{"", exitError, exitError, "it is empty; it must begin with [generic]"},
	} {
		conf := write(t, dir, "c.conf", c.text)
		status, out, errs := try(t, dir, "-C", conf, "--check-config")
		if want := strings.ReplaceAll(c.errors, "CONF", conf); status != c.check || out != "" || !strings.Contains(errs, want) || want == "" && errs != "" {
			t.Errorf("%q: status %d, errors %q", c.text, status, errs)
		}
		if status, out, errs = try(t, dir, "-C", "c.conf", "--dump-config=json"); status != c.dump {
			t.Errorf("%q: dump: status %d, errors %q", c.text, status, errs)
		} else if status == exitOK && !json.Valid([]byte(out)) {
			t.Errorf("%q: not JSON: %s", c.text, out)
		}
	}
	status, out, _ := try(t, dir, "-C", filepath.Join(dir, "none"), "--dump-config", "1", "memory:1M")
	if want := "[generic]\n\n[]\n\texportname = memory:1M\n"; status != exitOK || !strings.HasPrefix(out, want) {
		t.Errorf("a command line's export without a configuration: status %d, %q", status, out)
	}
}

// TestSyncReaches: the key sync reaches what the other keys make of an export. Of a tree nobody
// can see from outside whether it is obeyed; its own tests show that.
func TestSyncReaches(t *testing.T) {
	for keys, want := range map[string]bool{
		"exportname = /tree\ntreefiles = true\nfilesize = 65536\nsync = true": true,
		"exportname = /tree\ntreefiles = true\nfilesize = 65536":              false,
		"exportname = /parts\nmultifile = true\nsync = true":                  true,
		"exportname = /parts\nmultifile = true":                               false,
		"exportname = file:/f | offset:512\nsync = true":                      true,
	} {
		dir := t.TempDir()
		p := parsed(t, dir, "-C", write(t, dir, "c.conf", "[generic]\n[e]\n"+keys+"\n"))
		conf, problems, err := p.load()
		if err != nil || len(problems) > 0 {
			t.Fatal(err, problems)
		}
		src, err := p.source(conf.Exports[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		spec, err := refine(src.spec, conf.Exports[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, args := spec.Backend(); args.Bool("sync") != want {
			t.Errorf("%s: served as %s", keys, spec)
		}
	}
}

// TestAuthFile: a missing list lets everybody in, an empty one nobody, and one
// that cannot be understood is an error.
func TestAuthFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "empty", "# nobody\n")
	write(t, dir, "bad", "10.0.0.1\nlocalhost\n")
	for name, want := range map[string]string{"none": "", "empty": "", "bad": "bad:2: "} {
		conf := write(t, dir, "c.conf", "[generic]\n[e]\nexportname = /e\nauthfile = "+filepath.Join(dir, name)+"\n")
		_, _, errs := try(t, dir, "-C", conf, "--check-config")
		if want == "" && errs != "" || !strings.Contains(errs, want) {
			t.Errorf("%s: %q", name, errs)
		}
	}
}

// TestAddresses: what the configuration says holds; the command line is added.
func TestAddresses(t *testing.T) {
	for _, c := range []struct{ generic, operand, want string }{
		{"oldstyle = true\n[e]\nlistenaddr = 127.0.0.2", "", "tcp||10809 tcp|127.0.0.2|2000(e)"},
		{"oldstyle = true\nlistenaddr = ::1\n[e]\nlistenaddr = 127.0.0.2, 127.0.0.3", "", "tcp|::1|10809 tcp|127.0.0.2|2000(e) tcp|127.0.0.3|2000(e)"},
		{"listen = 127.0.0.1:1, unix:a, vsock:7", "", "tcp|127.0.0.1|1 unix|DIR/a| vsock||7"},
		{"listen = :1\nport = 2", "", "tcp||1 tcp||2"},
		{"listen = unix:@a\nunixsock = /s", "3", "unix|/s| unix|@a| tcp||3"},
		{"listen = unix:@a", "--listen :5 --listen vsock:2:6", "unix|@a| tcp||5 vsock|2|6"},
		{"", "--listen 127.0.0.1:5", "tcp|127.0.0.1|5"},
		{"", "--listen 127.0.0.1:5 6", "tcp|127.0.0.1|5 tcp||6"},
		{"unixsock = /s\nduallisten = true", "", "unix|/s| tcp||10809"},
		{"oldstyle = true", "", "tcp||10809 tcp||2000(e)"},
		{"oldstyle = true\nlistenaddr = ::1", "", "tcp|::1|10809 tcp|::1|2000(e)"},
		{"", "--oldstyle 1234", "tcp||1234"},
		{"", "--oldstyle 1234 memory:1M", "tcp||1234()"},
		{"port = 5", "--oldstyle ::1@1234 memory:1M", "tcp|::1|1234() tcp||5"},
		{"", "unix:s memory:1M", "unix|DIR/s|"},
		{"", "--oldstyle unix:s memory:1M", "unix|DIR/s|()"},
		{"", "--oldstyle --listen unix:s tcp:127.0.0.1:7 memory:1M --listen :8", "unix|DIR/s| tcp||8 tcp|127.0.0.1|7()"},
		{"", "--oldstyle unix:s", "unix|DIR/s|"},
		{"listenaddr = 127.0.0.1 ::1\t::2,::3", "", "tcp|127.0.0.1|10809 tcp|::1|10809 tcp|::2|10809 tcp|::3|10809"},
		{"oldstyle = true\n[e]\nlistenaddr = 127.0.0.2 127.0.0.3", "", "tcp||10809 tcp|127.0.0.2|2000(e) tcp|127.0.0.3|2000(e)"},
		{"", "", "tcp||10809"},
		{"port = 1", "", "tcp||1"},
		{"listenaddr = ::1, 127.0.0.1", "", "tcp|::1|10809 tcp|127.0.0.1|10809"},
		{"unixsock = /s", "", "unix|/s|"},
		{"unixsock = s", "", "unix|DIR/s|"},
		{"unixsock = /s\nduallisten = true\nport = 3", "", "unix|/s| tcp||3"},
		{"", "1234", "tcp||1234"},
		{"", "::1@1234", "tcp|::1|1234"},
		{"port = 1", "1234", "tcp||1 tcp||1234"},
		{"port = 1", "1", "tcp||1"},
		{"listenaddr = ::1", "1234", "tcp|::1|1234"},
		{"listenaddr = ::1", "127.0.0.1@1234", "tcp|::1|10809 tcp|127.0.0.1|1234"},
		{"unixsock = /s", "1234", "unix|/s| tcp||1234"},
	} {
		dir := t.TempDir()
		generic, export, _ := strings.Cut(c.generic, "[e]\n")
		conf := write(t, dir, "c.conf", "[generic]\n"+generic+"\n[e]\nexportname = /e\n"+export+"\n")
		if strings.Contains(c.generic, "oldstyle") {
			write(t, dir, "c.conf", read(t, conf)+"port = 2000\n")
		}
		args := append([]string{"-C", conf}, strings.Fields(c.operand)...)
		p := parsed(t, dir, args...)
		config, problems, err := p.load()
		if err != nil || len(problems) > 0 {
			t.Fatal(err, problems)
		}
		var got []string
		for _, a := range p.addresses(config) {
			text := a.Network + "|" + a.Host + "|" + a.Port
			if a.oldstyle != nil {
				text += "(" + *a.oldstyle + ")"
			}
			got = append(got, text)
		}
		if got, want := strings.Join(got, " "), strings.ReplaceAll(c.want, "DIR", dir); got != want {
			t.Errorf("%q %q: %s, want %s", c.generic, c.operand, got, want)
		}
	}
}
