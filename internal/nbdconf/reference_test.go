package nbdconf

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/internal/testgate"
)

// TestReference asks the real reference, as inetd would start it, whether it
// takes a file, and compares. What it takes, this package must take; that this
// package may refuse more is said for each case.
func TestReference(t *testing.T) {
	testgate.Requires(t, testgate.Output("nbd-server version 3.", "/usr/bin/nbd-server", "-V"))
	const generic, export = "[generic]\n", "[e]\nexportname = /e\n"
	for _, c := range []struct {
		text   string
		accept bool // by the reference
		differ string
	}{
		{generic + export, true, ""},
		{"", false, ""},
		{generic, false, "an empty configuration is refused by the program, not here"},
		{export, false, ""},
		{export + generic, false, ""},
		{"x = 1\n" + generic + export, false, ""},
		{generic + "rubbish\n" + export, false, ""},
		{generic + "; c\n" + export, false, ""},
		{generic + "= x\n" + export, false, ""},
		{"[generic] # c\n" + export, false, ""},
		{"[generic]  \n" + export, true, ""},
		{"# c\n\n   # d\n" + generic + export, true, ""},
		{"[generic]\r\n[e]\r\nexportname = /e\r\n", true, ""},
		{generic + "[]\nexportname = /e\n", false, ""},
		{generic + "[a]b]\nexportname = /e\n", false, ""},
		{generic + "[open\n" + export, false, ""},
		{generic + "foo = bar\n" + export + "trimm = true\n", true, ""},
		{generic + "readonly = true\n" + export + "port = 1\nunixsock = /s\n", true, ""},
		{generic + export + "exportname[de] = /x\nfoo bar = x\nfoo.bar@ = y\n", true, ""},
		{generic + export + "a[b]c = x\n", false, ""},
		{generic + export + "readonly = 1\nsync = 0\nflush = true  \n", true, ""},
		{generic + export + "readonly = yes\n", false, ""},
		{generic + export + "readonly = True\n", false, ""},
		{generic + export + "readonly =\n", false, ""},
		{generic + export + "maxconnections = 3 \n", true, ""},
		{generic + export + "maxconnections = +3\n", true, ""},
		{generic + export + "maxconnections = -3\n", true, ""},
		{generic + export + "maxconnections = 3.5\n", false, ""},
		{generic + export + "maxconnections = x\n", false, ""},
		{generic + export + "maxconnections = 99999999999\n", false, ""},
		{generic + export + "filesize = 4096\n", true, ""},
		{generic + export + "filesize = 4096 \n", false, "white space does no harm"},
		{generic + export + "filesize = 10M\n", false, ""},
		{generic + export + "filesize =\n", false, ""},
		{generic + export + "filesize = 0x10\n", false, ""},
		{generic + export + "filesize = -1\n", true, ""},
		{generic + "max_threads = 0\n" + export, true, ""},
		{generic + "max_threads = x\n" + export, false, ""},
		{generic + "oldstyle = true\n" + export, false, ""},
		{generic + "oldstyle = true\n" + export + "port = 2000\n", false, "oldstyle is spoken here"},
		{generic + "listen = x y\n" + export, true, "the reference does not know the key"},
		{generic + "oldstyle = false\n" + export, true, ""},
		{generic + "force_tls = true\n" + export, true, "nobody could connect"},
		{generic + "listenaddr =\n" + export, true, ""},
		{generic + "includedir = /nonexistent\n" + export, false, ""},
		{generic + "[e]\nreadonly = true\n", false, ""},
		{generic + "[e]\nexportname = /e\\x\n", false, ""},
		{generic + "[e]\nexportname = /e\\s\\t\\n\\r\\\\\n", true, ""},
		{generic + "[e]\nexportname = /e\\\n", false, ""},
		{generic + "[e]\nexportname = /\xff\n", false, ""},
		{generic + "[\xc3\xa9]\nexportname = /e\n", true, ""},
		{generic + export + generic + "port = 1\n", true, ""},
		{generic + export + "[e]\nreadonly = true\n", true, ""},
		{generic + export + "virtstyle = none\n", true, ""},
		{generic + export + "virtstyle = iphash\n", true, ""},
		{generic + export + "virtstyle = cidrhash 16\n", true, ""},
		{generic + export + "virtstyle = cidrhash\n", false, ""},
		{generic + export + "virtstyle = other\n", false, ""},
		{generic + export + "virtstyle =\n", false, ""},
		{generic + export + "virtstyle = cidrhash 999\n", true, ""},
		{generic + export + "virtstyle = cidrhash24\n", true, ""},
		{generic + export + "virtstyle = cidrhash -1\n", true, "a prefix of -1 bits is a mistake"},
		{generic + export + "virtstyle = nonesuch\n", true, "the reference compares the beginning only"},
		{generic + export + "multifile = true\n", true, ""},
		{generic + export + "multifile = yes\n", false, ""},
		{generic + export + "treefiles = true\nfilesize = 4096\n", true, ""},
		{generic + export + "treefiles = true\n", true, "the reference fails when a client comes"},
		{generic + export + "temporary = true\nmultifile = true\nfilesize = 4096\n", true, "the manual forbids it"},
		{generic + export + "waitfile = true\n", true, ""},
		{generic + export + "waitfile = true\ncopyonwrite = true\n", false, ""},
		{generic + export + "waitfile = /diff\n", false, "the manual has it as a string"},
		{generic + export + "prerun = true %s\npostrun = true %s\n", true, ""},
		{generic + export + "port = 2000\nlistenaddr = 10.0.0.1\n", true, ""},
		{generic + export + "timeout = 60\n", true, ""},
		{generic + export + "tlsonly = true\n", true, "the reference ignores it, and would serve in clear"},
		{generic + export + "copyonwrite = true\nsplice = true\n", false, "splice has no effect here"},
		{generic + export + "sdp = true\n", false, ""},
		{generic + export + "listenaddr = (null)\n", true, ""},
		{generic + export + "timeout = 0\ntlsonly = false\n", true, ""},
		{"\xef\xbb\xbf" + generic + export, false, "a byte order mark does no harm"},
	} {
		name := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(name, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		pidFile := name + ".pid"
		if got := exec.Command("/usr/bin/nbd-server", "0", "-C", name, "-p", pidFile).Run() == nil; got != c.accept {
			t.Errorf("%q: the reference takes it: %v, this table says %v", c.text, got, c.accept)
		} else if got {
			endReference(t, pidFile)
		}
		_, problems, err := Load(opener.OS{}, name)
		got := err == nil && problems.Err() == nil
		if (got != c.accept) != (c.differ != "") {
			t.Errorf("%q: taken: %v; by the reference: %v; a difference is wanted: %q\n%v", c.text, got, c.accept, c.differ, problems)
		}
	}
}

// endReference ends the process that the reference has left in the background: it would
// look for a client on its closed standard input for seconds, and never rest.
func endReference(t *testing.T, pidFile string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		text, err := os.ReadFile(pidFile)
		if pid, bad := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && bad == nil {
			if p, err := os.FindProcess(pid); err == nil {
				p.Kill()
			}
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the reference tells no number in %s: %v", pidFile, err)
		}
		time.Sleep(5 * time.Millisecond) // there is nothing to wait for: it tells nobody
	}
}
