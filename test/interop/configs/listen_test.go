package configs

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// TestListenAddr: listenaddr and port say where clients are served, and nobody is
// served elsewhere. The reference splits addresses at white space, too.
func TestListenAddr(t *testing.T) {
	testgate.Requires(t, testgate.Linux()) // on which 127.0.0.3 is there as well
	t.Parallel()
	dir := harness.Dir(t)
	port := harness.FreePort(t)
	config := configuration(t, dir, fmt.Sprintf("[generic]\nlistenaddr = 127.0.0.1 127.0.0.3\nport = %d\n[e]\nexportname = memory:8k\n", port))
	p := harness.Spawn(t, nil, harness.Binary(t), "-n", "-C", config)
	p.AwaitText("serving")
	for _, host := range []string{"127.0.0.1", "127.0.0.3"} {
		if got := size(t, fmt.Sprintf("nbd://%s:%d/e", host, port)); got != "8192" {
			t.Errorf("%s: %s bytes", host, got)
		}
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.2:%d", port)); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Errorf("at an address that is not in listenaddr: %v", err)
	}
	p.Stop()

	// Somebody else's address is an error that says where it stands.
	configuration(t, dir, "[generic]\n\nlistenaddr = 192.0.2.1\n[e]\nexportname = memory:8k\n")
	if said := harness.Refused(t, harness.Binary(t), "-n", "-C", config); !strings.Contains(said, config+":3: listenaddr: listen tcp 192.0.2.1:10809") {
		t.Errorf("it said %s", said)
	}
}

func configuration(t *testing.T, dir, text string) string {
	t.Helper()
	name := filepath.Join(dir, "config")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestHostNames: a name stands for all of its addresses, those that this machine has not
// excepted.
func TestHostNames(t *testing.T) {
	testgate.Requires(t, testgate.Linux(), testgate.Root(), testgate.Program("unshare"))
	t.Parallel()
	dir := harness.Dir(t)
	hosts := filepath.Join(dir, "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n127.0.0.5 disks\n192.0.2.1 disks\n127.0.0.6 disks\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	port := harness.FreePort(t)
	config := configuration(t, dir, fmt.Sprintf("[generic]\nlistenaddr = disks\nport = %d\n[e]\nexportname = memory:8k\n", port))
	p := harness.Spawn(t, nil, "unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts, harness.Binary(t), "-n", "-C", config)
	p.AwaitText("serving")
	for _, host := range []string{"127.0.0.5", "127.0.0.6"} {
		if got := size(t, fmt.Sprintf("nbd://%s:%d/e", host, port)); got != "8192" {
			t.Errorf("%s: %s bytes", host, got)
		}
	}
	if !strings.Contains(p.Log(), "name=disks") || !strings.Contains(p.Log(), "192.0.2.1") {
		t.Error("nothing is said of the address that is somebody else's")
	}
	p.Stop()
}

// TestOldstyleAddress: --oldstyle is for the first operand, whatever kind of address that
// is, and for no other one.
func TestOldstyleAddress(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	dir := harness.Dir(t)
	port := harness.FreePort(t)
	for kind, c := range map[string][2]string{
		"unix": {"unix:" + filepath.Join(dir, "old"), harness.UnixURI(filepath.Join(dir, "old"), "")},
		"tcp":  {fmt.Sprintf("tcp:127.0.0.1:%d", port), fmt.Sprintf("nbd://127.0.0.1:%d", port)},
	} {
		now := filepath.Join(dir, kind)
		p := harness.Spawn(t, nil, harness.Binary(t), "-n", "-C", filepath.Join(dir, "none"), "--oldstyle", c[0], "memory:8k", "--listen", "unix:"+now)
		p.AwaitText("serving")
		if testgate.Find("nbdinfo") != "" {
			if out := harness.Run(t, "nbdinfo", c[1]); !strings.Contains(out, "protocol: oldstyle") {
				t.Errorf("%s: nbdinfo says\n%s", kind, out)
			}
		} else {
			dial(t, c[1], &client.Config{Oldstyle: true}).Close()
		}
		dial(t, harness.UnixURI(now, ""), nil).Close()
		p.Stop()
	}
}

// TestPortZero: port = 0 of the configuration is inetd's way, where standard input is the
// client.
func TestPortZero(t *testing.T) {
	testgate.Requires(t, testgate.Program("nbdsh"))
	t.Parallel()
	dir := harness.Dir(t)
	config := configuration(t, dir, "[generic]\nport = 0\nlistenaddr = 127.0.0.1\nallowlist = true\n[e]\nexportname = memory:8k\n")
	script := fmt.Sprintf("h.set_export_name('e'); h.connect_command(['%s', '-C', '%s']); print(h.get_size()); h.shutdown()", harness.Binary(t), config)
	if out := harness.Run(t, "nbdsh", "-c", script); strings.TrimSpace(out) != "8192" {
		t.Errorf("nbdsh says %s", out)
	}
	p := harness.Spawn(t, nil, harness.Binary(t), "-n", "-C", config)
	p.AwaitText("serving")
	_, rest, _ := strings.Cut(p.Log(), "listening=127.0.0.1:")
	port, _, _ := strings.Cut(rest, " ")
	if got := size(t, "nbd://127.0.0.1:"+port+"/e"); got != "8192" {
		t.Errorf("%s bytes", got)
	}
	p.Stop()
}

// TestSameAddress: two that are to be served at one address are an error that names both
// places, for --check-config as well.
func TestSameAddress(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	dir := harness.Dir(t)
	for text, want := range map[string]string{
		"oldstyle = true\n[a]\nexportname = memory:8k\nport = 2000\n[b]\nexportname = memory:8k\nport = 2000\n": "CONFIG:8: port in [b]: port 2000 of all addresses is taken by port in [a] at CONFIG:5;",
		"oldstyle = true\n[a]\nexportname = memory:8k\nport = 10809\n":                                          "CONFIG:5: port in [a]: port 10809 of all addresses is taken by [generic], where nothing else is said;",
		"port = 7\nlisten = unix:/a, :7\n[a]\nexportname = memory:8k\n":                                         "CONFIG:2: port: port 7 of all addresses is taken by listen at CONFIG:3;",
		"listenaddr = ::1 ::1\n[a]\nexportname = memory:8k\n":                                                   "CONFIG:2: listenaddr: [::1]:10809 is taken by listenaddr at CONFIG:2;",
	} {
		config := configuration(t, dir, "[generic]\n"+text)
		for _, how := range []string{"--check-config", "-n"} {
			if said := harness.Refused(t, harness.Binary(t), "-C", config, how); !strings.Contains(said, strings.ReplaceAll(want, "CONFIG", config)) {
				t.Errorf("%s of %q said %s", how, text, said)
			}
		}
	}
	config := configuration(t, dir, "[generic]\noldstyle = true\n[a]\nexportname = memory:8k\nport = 2000\nlistenaddr = 127.0.0.1\n[b]\nexportname = memory:8k\nport = 2000\nlistenaddr = 127.0.0.2\n")
	harness.Run(t, harness.Binary(t), "-C", config, "--check-config")
}
