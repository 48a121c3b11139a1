package configs

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/client"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// size asks nbdinfo for the size of an export, or, where that is not installed, our
// own client.
func size(t *testing.T, uri string) string {
	t.Helper()
	if testgate.Find("nbdinfo") != "" {
		return strings.TrimSpace(harness.Run(t, "nbdinfo", "--size", uri))
	}
	c := dial(t, uri, nil)
	defer c.Close()
	return fmt.Sprint(c.Size())
}

// await waits until the log of a process has a text, n times.
func await(t *testing.T, p *harness.Process, text string, n int) {
	t.Helper()
	for end := time.Now().Add(patience); strings.Count(p.Log(), text) < n; {
		if time.Now().After(end) {
			t.Fatalf("the log does not say %q %d times", text, n)
		}
		time.Sleep(5 * time.Millisecond) // the log is not a channel
	}
}

// TestVirtStyle: each client finds the file of its address, and all its connections
// share a device.
func TestVirtStyle(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	dir := harness.Dir(t)
	for name, n := range map[string]int{
		"127.0.0.1": 512, "unix": 1024, "127/0/0/1": 1536, "127.0.0.0/127.0.0.1": 2048, "%s": 2560,
	} {
		p := filepath.Join(dir, "disks", name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	section := func(name, style string) string {
		return fmt.Sprintf("[%s]\nexportname = %s/disks/%%s\n%s\n", name, dir, style)
	}
	s := harness.StartIn(t, dir, harness.Config{TCP: true, Exports: section("plain", "") + section("literal", "virtstyle = ipliteral") +
		section("hash", "virtstyle = iphash") + section("cidr", "virtstyle = cidrhash 8\nauthfile = "+dir+"/none") + section("none", "virtstyle = none") +
		"[chain]\nexportname = file:" + dir + "/disks/%s,readonly | offset:512\n"})
	for name, want := range map[string][2]string{ // by TCP, by the unix socket
		"plain": {"512", "1024"}, "literal": {"512", "1024"}, "hash": {"1536", "1024"}, "cidr": {"2048", "1024"}, "none": {"2560", "2560"}, "chain": {"0", "512"},
	} {
		uri := fmt.Sprintf("nbd://127.0.0.1:%d/%s", s.Port, name)
		if got := size(t, uri); got != want[0] {
			t.Errorf("%s by TCP: %s bytes, want %s", name, got, want[0])
		}
		if got := size(t, s.URI(name)); got != want[1] {
			t.Errorf("%s by the socket: %s bytes, want %s", name, got, want[1])
		}
	}
	one, two := dial(t, s.URI("plain"), nil), dial(t, s.URI("plain"), nil)
	if !strings.Contains(one.Export().Flags.String(), "MULTI_CONN") {
		t.Errorf("connections of one client share a device, but it says %v", one.Export().Flags)
	}
	one.Close()
	two.Close()
}

// TestVirtStyleIPv6: the address of an IPv6 client has its short form, as that of the program of
// the reference, though not of its manual.
func TestVirtStyleIPv6(t *testing.T) {
	unixOnly(t)
	testgate.Requires(t, testgate.Own("", func() string {
		l, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			return "needs IPv6 on the loopback interface"
		}
		l.Close()
		return ""
	}))
	t.Parallel()
	dir, port := harness.Dir(t), harness.FreePort(t)
	if err := os.Mkdir(filepath.Join(dir, "::"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("[generic]\nlistenaddr = ::1\nport = %d\n", port)
	wants := map[string]string{"ipliteral": "512", "iphash": "512", "cidrhash 64": "1024"}
	harness.Image(t, dir, "::1", make([]byte, 512))
	harness.Image(t, dir, "::/::1", make([]byte, 1024))
	for style := range wants {
		text += fmt.Sprintf("[%s]\nexportname = %s/%%s\nvirtstyle = %s\n", style[:4], dir, style)
	}
	config := harness.Image(t, dir, "config", []byte(text))
	p := harness.Spawn(t, nil, harness.Binary(t), "-n", "-C", config)
	p.AwaitText("serving")
	for style, want := range wants {
		if got := size(t, fmt.Sprintf("nbd://[::1]:%d/%s", port, style[:4])); got != want {
			t.Errorf("%s: %s bytes, want %s", style, got, want)
		}
	}
	p.Stop()
}

// TestCommands: prerun makes the file before it is opened, postrun removes it when it
// is closed, and a prerun that fails refuses.
func TestCommands(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	dir := harness.Dir(t)
	log := filepath.Join(dir, "log")
	s := harness.StartIn(t, dir, harness.Config{Exports: strings.ReplaceAll(`[made]
exportname = DIR/made-%s
prerun = echo "pre %s 100%% $NBD_EXPORT $NBD_CLIENT" >> DIR/log; truncate -s 4096 %s; echo hello
postrun = echo "post %s" >> DIR/log; rm %s; exit 3
[fails]
exportname = DIR/fails
prerun = echo no such luck >&2; exit 3
postrun = echo "post fails" >> DIR/log
[missing]
exportname = DIR/missing
prerun = echo "pre missing" >> DIR/log
postrun = echo "post missing" >> DIR/log
[memory]
exportname = memory:8k
postrun = echo "post %s" >> DIR/log
`, "DIR", dir)})
	uri := s.URI("made")
	if got := size(t, uri); got != "4096" {
		t.Errorf("made has %s bytes, want 4096", got)
	}
	await(t, s.Process, "postrun: the command failed: exit status 3", 1)
	if _, err := os.Stat(filepath.Join(dir, "made-unix")); !os.IsNotExist(err) {
		t.Errorf("postrun has not removed the file: %v", err)
	}
	if got, want := string(read(t, log)), fmt.Sprintf("pre %[1]s/made-unix 100%% made @\npost %[1]s/made-unix\n", dir); got != want {
		t.Errorf("the commands said %q, want %q", got, want)
	}
	await(t, s.Process, `prerun said export=made text=hello`, 1)

	if _, err := client.Dial(t.Context(), s.URI("fails"), nil); !errors.Is(err, handshake.ErrUnknown) {
		t.Errorf("prerun failed: %v, want ErrUnknown", err)
	}
	await(t, s.Process, `it said \"no such luck\"`, 1)
	if _, err := client.Dial(t.Context(), s.URI("missing"), nil); !errors.Is(err, handshake.ErrUnknown) {
		t.Errorf("the file is missing: %v, want ErrUnknown", err)
	}
	if got := size(t, s.URI("memory")); got != "8192" {
		t.Errorf("memory has %s bytes", got)
	}
	await(t, s.Process, `client disconnected client=unix export=memory`, 1)
	if got, want := string(read(t, log)), "pre missing\npost missing\npost memory:8k\n"; !strings.HasSuffix(got, want) {
		t.Errorf("the commands said %q, want %q at the end", got, want)
	}
	s.Stop() // and the helper does not outlive it
	if strings.Contains(s.Log(), "panic") {
		t.Error(s.Log())
	}
}

// TestRunUser: commands are run as the server's user, or as another one.
func TestRunUser(t *testing.T) {
	testgate.Requires(t, testgate.Linux(), testgate.Root())
	t.Parallel()
	for key, want := range map[string]string{
		"user = nobody":                        "65534 65534",
		"user = nobody\nrun_user = root":       "0 0",
		"user = nobody\nrun_user = root:disk":  "0 6",
		"user = nobody\nrun_user = 65534:disk": "65534 6",
		"run_user = nobody":                    "65534 65534",
		"user = nobody\ngroup = disk":          "65534 6",
	} {
		dir := harness.Dir(t)
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		s := harness.StartIn(t, dir, harness.Config{Generic: key, Exports: "[e]\nexportname = memory:8k\nprerun = echo $(id -u) $(id -g) > " + dir + "/who\n"})
		dial(t, s.URI("e"), nil).Close()
		if got := strings.TrimSpace(string(read(t, filepath.Join(dir, "who")))); got != want {
			t.Errorf("%q: run as %s, want %s", key, got, want)
		}
		s.Stop()
	}
}

// TestCommandsReload: a reload brings commands, and changes them.
func TestCommandsReload(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	s := harness.Start(t, harness.Config{Exports: "[e]\nexportname = memory:8k\n"})
	first := dial(t, s.URI("e"), nil)
	defer first.Close()
	for i, text := range []string{"one", "two"} {
		s.WriteConfig(t, "", fmt.Sprintf("[e]\nexportname = memory:8k\nprerun = echo %s > %s/said\n", text, s.Dir))
		s.Signal(hangup)
		await(t, s.Process, "configuration taken over", i+1)
		first.Close() // a shared device waits for its clients before it becomes one for each of them
		await(t, s.Process, "client disconnected", i+1)
		c := dial(t, s.URI("e"), nil)
		c.Close()
		await(t, s.Process, "client disconnected", i+2)
		if got := string(read(t, filepath.Join(s.Dir, "said"))); got != text+"\n" {
			t.Errorf("the command said %q, want %q", got, text)
		}
	}
}

// TestTimeout: an idle connection is ended by the server, one to an export without the key is
// not.
func TestTimeout(t *testing.T) {
	unixOnly(t)
	testgate.Requires(t, testgate.Program("nbdsh"))
	t.Parallel()
	s := harness.Start(t, harness.Config{TCP: true, Exports: "[e]\nexportname = memory:8k\ntimeout = 1\n[f]\nexportname = memory:8k\n"})
	harness.Run(t, "nbdsh", "-c", fmt.Sprintf(`
other = nbd.NBD()
other.connect_uri("%s")
for uri in ["%s", "%s"]:
    h = nbd.NBD()
    h.connect_uri(uri)
    h.pread(512, 0)
    try:
        while not (h.aio_is_closed() or h.aio_is_dead()):
            assert h.poll(%d) == 1, "the idle connection stays"
    except nbd.Error as e:
        print(uri, e)
other.pread(512, 0)
other.shutdown()
`, s.URI("f"), s.URI("e"), s.TCPURI("nbd", "e"), patience.Milliseconds()))
	await(t, s.Process, "the client was idle for too long: 1s", 2)
}

// TestOldstyleClients: antique clients are served on ports of their own, others by name.
func TestOldstyleClients(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	a, b := harness.FreePort(t), harness.FreePort(t)
	s := harness.Start(t, harness.Config{Generic: "oldstyle = true", Exports: fmt.Sprintf(
		"[a]\nexportname = memory:1M\nport = %d\nlistenaddr = 127.0.0.1\n[b]\nexportname = pattern:2M\nport = %d\nlistenaddr = 127.0.0.1\n[c]\nexportname = memory:3M\n", a, b)})
	uri := func(port int) string { return fmt.Sprintf("nbd://127.0.0.1:%d", port) }
	if got := size(t, s.URI("c")); got != fmt.Sprint(3<<20) {
		t.Errorf("c has %s bytes by name", got)
	}
	c := dial(t, uri(b), &client.Config{Oldstyle: true})
	if c.Size() != 2<<20 || !c.Caps().ReadOnly {
		t.Errorf("b has %d bytes, read-only: %v", c.Size(), c.Caps().ReadOnly)
	}
	c.Close()
	t.Run("nbdinfo", func(t *testing.T) {
		testgate.Requires(t, testgate.Program("nbdinfo"))
		out := harness.Run(t, "nbdinfo", uri(a))
		if !strings.Contains(out, "protocol: oldstyle") || !strings.Contains(out, "export-size: 1048576") {
			t.Errorf("nbdinfo says\n%s", out)
		}
	})
	t.Run("qemu-io", func(t *testing.T) {
		testgate.Requires(t, testgate.Program("qemu-io"))
		out := harness.Run(t, "qemu-io", "-f", "raw", "-c", "write -P 7 4k 8k", "-c", "flush", "-c", "read -P 7 4k 8k", uri(a))
		if strings.Contains(out, "fail") || !strings.Contains(out, "read 8192/8192") {
			t.Errorf("qemu-io says\n%s", out)
		}
	})
	t.Run("nbdcopy", func(t *testing.T) {
		testgate.Requires(t, testgate.Program("nbdcopy"))
		to := filepath.Join(s.Dir, "copy")
		harness.Run(t, "nbdcopy", uri(b), to)
		got := read(t, to)
		if len(got) != 2<<20 || !bytes.Equal(got[8:16], []byte{0, 0, 0, 0, 0, 0, 0, 8}) {
			t.Errorf("%d bytes, %x", len(got), got[8:16])
		}
	})
}

// TestWaitFile: changes wait for SIGUSR1, and the file need not be there before.
func TestWaitFile(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	dir := harness.Dir(t)
	image := filepath.Join(dir, "image")
	s := harness.StartIn(t, dir, harness.Config{Exports: "[e]\nexportname = " + image + "\nwaitfile = " + dir + "/diff\nfilesize = 65536\n"})
	c := dial(t, s.URI("e"), nil)
	defer c.Close()
	if err := c.WriteAt(t.Context(), bytes.Repeat([]byte("new!"), 1024), 8192, 0); err != nil {
		t.Fatal(err)
	}
	if testgate.Find("qemu-io") != "" {
		harness.Run(t, "qemu-io", "-f", "raw", "-c", "write -P 9 32k 4k", s.URI("e"))
	} else if err := c.WriteAt(t.Context(), bytes.Repeat([]byte{9}, 4096), 32<<10, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err == nil {
		t.Error("what is not there could be read")
	}
	if _, err := os.Stat(image); !os.IsNotExist(err) {
		t.Errorf("the image was made: %v", err)
	}
	// The image arrives.
	if err := os.WriteFile(image, bytes.Repeat([]byte("old!"), 16384), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Signal(mergeSignal)
	await(t, s.Process, "merged exports=1", 1)
	s.Signal(mergeSignal)
	await(t, s.Process, "nothing to merge: no export that is open has waitfile, or all have merged", 1)
	got := make([]byte, 65536)
	if err := c.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("old!"), 16384)
	copy(want[8192:], bytes.Repeat([]byte("new!"), 1024))
	copy(want[32<<10:], bytes.Repeat([]byte{9}, 4096))
	if !bytes.Equal(got, want) {
		t.Error("a client reads something else after the merge")
	}
	harness.Same(t, image, want)
	if _, err := os.Stat(filepath.Join(dir, "diff")); !os.IsNotExist(err) {
		t.Errorf("the diff is still there: %v", err)
	}
	c.Close()
	s.Stop()

	// A server that is started again waits for a signal of its own.
	s = harness.StartIn(t, dir, harness.Config{Exports: "[e]\nexportname = " + image + "\nwaitfile = " + dir + "/diff\nfilesize = 65536\n"})
	c = dial(t, s.URI("e"), nil)
	defer c.Close()
	if err := c.WriteAt(t.Context(), []byte("later"), 0, block.FUA); err != nil {
		t.Fatal(err)
	}
	harness.Same(t, image, want)
	s.Signal(mergeSignal)
	await(t, s.Process, "merged exports=1", 1)
	copy(want, "later")
	harness.Same(t, image, want)
}

// TestListeners: several sockets of each kind, from keys and from options.
func TestListeners(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	dir := harness.Dir(t)
	ports := []int{harness.FreePort(t), harness.FreePort(t), harness.FreePort(t), harness.FreePort(t)}
	sock := func(i int) string { return filepath.Join(dir, fmt.Sprintf("s%d", i)) }
	config := filepath.Join(dir, "config")
	text := fmt.Sprintf("[generic]\nlisten = 127.0.0.1:%d, tcp:127.0.0.1:%d, unix:%s, unix:%s\nunixsock = %s\nduallisten = true\nlistenaddr = 127.0.0.1\nport = %d\n[e]\nexportname = memory:8k\n",
		ports[0], ports[1], sock(0), sock(1), sock(2), ports[2])
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := harness.Spawn(t, nil, harness.Binary(t), "-n", "-C", config, "--listen", fmt.Sprintf("127.0.0.1:%d", ports[3]), "--listen=unix:"+sock(3))
	p.AwaitListening("unix", sock(0))
	for i := range 4 {
		p.AwaitListening("tcp", fmt.Sprintf("127.0.0.1:%d", ports[i]))
		for _, uri := range []string{harness.UnixURI(sock(i), "e"), fmt.Sprintf("nbd://127.0.0.1:%d/e", ports[i])} {
			if got := size(t, uri); got != "8192" {
				t.Errorf("%s: %s bytes", uri, got)
			}
		}
	}
	p.Stop()
	for i := range 4 {
		if _, err := os.Lstat(sock(i)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", sock(i), err)
		}
	}
}

// TestIncludeDir: exports come from files of a folder, too, in which other names are left alone.
func TestIncludeDir(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	dir := harness.Dir(t)
	for name, text := range map[string]string{"a.conf": "[a]\nexportname = memory:8k\n", "b.conf": "[b]\nexportname = memory:16k\n", "c.old": "[c]\nexportname = memory:8k\n"} {
		harness.Image(t, dir, name, []byte(text))
	}
	s := harness.Start(t, harness.Config{Generic: "includedir = " + dir, Exports: "[e]\nexportname = memory:4k\n"})
	for name, want := range map[string]string{"e": "4096", "a": "8192", "b": "16384"} {
		if got := size(t, s.URI(name)); got != want {
			t.Errorf("%s: %s bytes, want %s", name, got, want)
		}
	}
	if _, err := client.Dial(t.Context(), s.URI("c"), nil); !errors.Is(err, handshake.ErrUnknown) {
		t.Errorf("a file by another name: %v, want ErrUnknown", err)
	}
}

// TestTLSOnly: the key that the manual of the reference has, and its program
// ignores.
func TestTLSOnly(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	dir := harness.Dir(t)
	server := harness.NewAuthority(t, dir, "ca").Issue(t, "server", "server", "localhost")
	s := harness.StartIn(t, dir, harness.Config{Generic: harness.ServerLines(server, "") + "control = " + dir + "/ctl",
		Exports: "[e]\nexportname = memory:8k\ntlsonly = true\n[f]\nexportname = memory:8k\n"})
	if _, err := client.Dial(t.Context(), s.URI("e"), nil); !errors.Is(err, handshake.ErrTLSRequired) {
		t.Errorf("in clear: %v", err)
	}
	dial(t, s.URI("f"), nil).Close()
	t.Run("nbdinfo", func(t *testing.T) {
		testgate.Requires(t, testgate.Program("nbdinfo"))
		if said := harness.Refused(t, "nbdinfo", s.URI("e")); !strings.Contains(said, "TLS") {
			t.Errorf("in clear nbdinfo says %q", said)
		}
		uri := fmt.Sprintf("nbds+unix://localhost/e?socket=%s&tls-certificates=%s", s.Socket, server)
		if got := strings.TrimSpace(harness.Run(t, "nbdinfo", "--size", uri)); got != "8192" {
			t.Errorf("by TLS nbdinfo finds %s bytes", got)
		}
	})
	uri := strings.Replace(s.URI("e"), "nbd+unix", "nbds+unix", 1) + "&tls-hostname=localhost&tls-certificates=" + server
	dial(t, uri, nil).Close()
	// It is lifted by its own name.
	harness.Run(t, harness.Tool(t, "nbd"), "ctl", "--socket", dir+"/ctl", "change", "e", "tlsonly=")
	dial(t, s.URI("e"), nil).Close()
	s.Stop()
	all := harness.StartIn(t, dir, harness.Config{Generic: harness.ServerLines(server, "") + "tlsonly = true", Exports: "[e]\nexportname = memory:8k\n"})
	if _, err := client.Dial(t.Context(), all.URI("e"), nil); !errors.Is(err, handshake.ErrTLSRequired) {
		t.Errorf("tlsonly in [generic], in clear: %v", err)
	}
	dial(t, uri, nil).Close()
}

// TestKeysWithoutEffect: keys that clients cannot tell, and one that is refused.
func TestKeysWithoutEffect(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	s := harness.Start(t, harness.Config{
		Generic: "splice = true",
		Exports: "[e]\nexportname = memory:8k\nsplice = true\nsdp = false\n",
	})
	if got := size(t, s.URI("e")); got != "8192" {
		t.Errorf("%s bytes", got)
	}
	config := filepath.Join(s.Dir, "sdp")
	if err := os.WriteFile(config, []byte("[generic]\n[e]\nexportname = memory:8k\nsdp = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := harness.Refused(t, harness.Binary(t), "-C", config, "--check-config"); !strings.Contains(got, "sdp in [e] is not supported") {
		t.Errorf("sdp: %s", got)
	}
}

// keyNames are all keys of both kinds of sections.
func keyNames() (names []string) {
	for _, generic := range []bool{true, false} {
		for _, k := range nbdconf.Keys(generic) {
			names = append(names, k.Name)
		}
	}
	return names
}

// TestManual: every key that the manual of nbd-server 3.24 has is one of ours, for the same
// section. The list is from nbd-server(5).
func TestManual(t *testing.T) {
	for _, c := range []struct {
		generic bool
		keys    string
	}{
		{true, "allowlist cacertfile certfile force_tls group includedir keyfile listenaddr max_threads oldstyle port splice user unixsock duallisten tlsprio"},
		{false, "authfile copyonwrite cowdir exportname filesize flush force_tls fua listenaddr maxconnections multifile treefiles postrun prerun " +
			"readonly rotational sdp sparse_cow sync temporary timeout transactionlog trim virtstyle tlsonly waitfile"},
		// What its program knows, and its manual does not.
		{false, "datalog splice"},
		// What the manual says of others: "unless tlsonly is set in the generic section".
		{true, "tlsonly"},
	} {
		var ours []string
		for _, k := range nbdconf.Keys(c.generic) {
			ours = append(ours, k.Name)
		}
		for _, k := range strings.Fields(c.keys) {
			if !slices.Contains(ours, k) {
				t.Errorf("%s is not known (in [generic]: %v)", k, c.generic)
			}
		}
	}
}
