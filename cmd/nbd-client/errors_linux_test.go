package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/server"
	"nbd.example/nbd/test/harness"
)

// TestTexts: what only prints.
func TestTexts(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		line           string
		status         int
		stdout, stderr string // what these contain; "" for nothing
	}{
		{"-V", exitOK, "This is nbd-client, from nbd ", ""},
		{"--version", exitOK, "This is nbd-client, from nbd ", ""},
		{"-h", exitOK, "Usage: nbd-client [option ...] host [port] [device]\n", ""},
		{"list --help", exitOK, "Usage: nbd-client", ""},
		{"--completion bash", exitOK, "complete -F _nbd_client nbd-client\n", ""},
		{"--chains", exitOK, "memory:SIZE", ""},
		{"-Q", exitError, "", "nbd-client: unknown option \"-Q\"; --help lists all\n"},
		{"-Q -t x h", exitError, "", "\nnbd-client: option -t: "},
		{"-n", exitError, "", "nbd-client: nothing to do: name a server"},
		{"-S h /dev/nbd0", exitError, "", "Sockets Direct Protocol"},
		{"h /dev/nbd0 bs=512 -l", exitError, "", "-l wants only a server"},
	} {
		status, out, errs := w.run(strings.Fields(c.line)...)
		if status != c.status || !strings.Contains(out, c.stdout) || !strings.Contains(errs, c.stderr) || (c.stderr == "") != (errs == "") || (c.stdout == "") != (out == "") {
			t.Errorf("%s: status %d, output %q, errors %q", c.line, status, out, errs)
		}
	}
}

// TestHints: errors say what to do.
func TestHints(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20, "other": 1 << 20})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	for _, c := range []struct {
		line string
		want []string
	}{
		{"-n " + s.uri("dsk"), []string{"server refused NBD_OPT_GO: NBD_REP_ERR_UNKNOWN", `the server has "disk", "other"`, "name one of them by -N NAME"}},
		{"-n 127.0.0.1 " + dead + " /dev/nbd0", []string{"connection refused", "nobody listens there"}},
		{"-l 127.0.0.1 " + dead, []string{"connection refused", "nobody listens there"}},
		{"-n -u /nonexistent/socket /dev/nbd0", []string{"there is no such socket"}},
		{"-n -x -H host -N disk -u " + s.socket + " /dev/nbd0", []string{"NBD_OPT_STARTTLS", "the server offers no TLS: leave -x"}},
		{"-n -x -N disk -u " + s.socket, []string{"give one (-H NAME, or"}},
		{"nbd7", []string{"/nbdtab describes no device; add a line, as in"}},
		{"-n nbd://h:0/", []string{`port "0" is not a number from 1 to 65535`}},
		{"-n 1.2.3.4.5:x /dev/nbd0", []string{`port "x"`}},
		{"-n --serve /nonexistent nbd0", []string{"/nonexistent"}},
		{"detach disk", []string{`"disk" is neither the name of an NBD device, which is like /dev/nbd0, nor the identifier of one that is attached`}},
		{"detach /dev/nbd0p1", []string{"/dev/nbd0p1 is a partition: name the device, /dev/nbd0"}},
		{"resize nbd0", []string{"resize nbd0: the device is not attached"}},
		{"wait nbd0 ready --timeout 0.05", []string{"nbd0 is not ready after 50ms: detached"}},
	} {
		status, out, errs := w.run(strings.Fields(c.line)...)
		if status == exitOK || out != "" {
			t.Errorf("%s: status %d, %q", c.line, status, out)
		}
		for _, want := range c.want {
			if !strings.Contains(errs, want) {
				t.Errorf("%s: it says %s and not %q", c.line, errs, want)
			}
		}
	}
}

// TestNameHint has no name service to ask.
func TestNameHint(t *testing.T) {
	p := &program{flags: &clientflags.Flags{}}
	err := fmt.Errorf("attach: %w", &net.DNSError{Err: "no such host", Name: "lst", IsNotFound: true})
	if got := p.hints(t.Context(), err); len(got) != 1 || !strings.Contains(got[0], "is the name right? Commands are the first word") {
		t.Errorf("%q", got)
	}
}

// TestKernelHints: what the kernel does not have, or does not allow.
func TestKernelHints(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	w.kernel.Intercept(func(_ context.Context, op kerneltest.Op, _ kernel.Index) error {
		if op == kerneltest.OpConnect {
			return kernel.ErrPermission
		}
		return nil
	})
	if status, _, errs := w.run("-n", s.uri("disk")); status != exitError || !strings.Contains(errs, "start it as root") {
		t.Errorf("status %d, %s", status, errs)
	}
	w.kernel.Intercept(nil)
	if status, _, errs := w.run("-n", s.uri("disk"), "/dev/nbd1", "--no-supervise", "-C", "0"); status != exitError || !strings.Contains(errs, "-C") {
		t.Errorf("status %d, %s", status, errs)
	}
	w.run(s.uri("disk"), "/dev/nbd1", "--no-supervise")
	if status, _, errs := w.run("-n", s.uri("disk"), "/dev/nbd1", "-i", "x"); status != exitError || !strings.Contains(errs, "/dev/nbd1 was attached by process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("status %d, %s", status, errs)
	}
	w.run("detach", "nbd1")
	w.loaded = false
	for _, c := range []struct {
		line   string
		status int
		want   string
	}{
		{"-n " + s.uri("disk"), exitError, "modprobe nbd"},
		{"list", exitOK, "the module nbd is not loaded"},
		{"-c /dev/nbd0", exitError, ""},
		{"status nbd0", exitError, "not attached"},
		{"wait nbd0 gone", exitOK, ""},
		{"detach nbd0", exitError, "modprobe nbd"},
	} {
		if status, _, errs := w.run(strings.Fields(c.line)...); status != c.status || !strings.Contains(errs, c.want) {
			t.Errorf("%s: status %d, %s", c.line, status, errs)
		}
	}
	if status, out, _ := w.run("list", "--json"); status != exitOK || !strings.Contains(out, `"devices": []`) {
		t.Errorf("list --json: status %d, %s", status, out)
	}
}

// TestExports asks servers what they have.
func TestExports(t *testing.T) {
	w := newWorld(t)
	s := w.serveConfig(server.Config{AllowList: true, Exports: []*server.Export{
		memoryExport("a", ""), memoryExport("b c", "two words"), memoryExport("\x1b[31m", "red\n"),
	}})
	status, out, errs := w.run("-l", "-u", s.socket)
	if status != exitOK || out != "a\nb c: two words\n\"\\x1b[31m\": \"red\\n\"\n" || errs != "" {
		t.Errorf("status %d, %q, %s", status, out, errs)
	}
	if status, out, _ = w.run("-l", s.uri("")); status != exitOK || !strings.HasPrefix(out, "a\n") {
		t.Errorf("by URI: status %d, %q", status, out)
	}
	w2 := newWorld(t)
	s = w2.serveConfig(server.Config{Exports: []*server.Export{memoryExport("a", "")}})
	if status, _, errs = w2.run("-l", "-u", s.socket); status != exitError || !strings.Contains(errs, "does not list its exports") {
		t.Errorf("a silent server: status %d, %s", status, errs)
	}
}

func memoryExport(name, description string) *server.Export {
	return &server.Export{Name: name, Description: description, Open: func(context.Context, server.Client) (*block.Device, error) {
		b, err := memory.New(memory.Config{Size: 1 << 20})
		if err != nil {
			return nil, err
		}
		return block.New(b)
	}}
}

// tlsServer serves with TLS on the loopback address. It returns the port.
func (w *world) tlsServer(folder string) string {
	w.t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(folder, "server-cert.pem"), filepath.Join(folder, "server-key.pem"))
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := server.New(server.Config{
		AllowList: true, TLSMode: server.Forced, TLS: &tls.Config{Certificates: []tls.Certificate{cert}},
		Exports: []*server.Export{memoryExport("disk", "")},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { s.Serve(l) })
	w.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Shutdown(ctx)
		serving.Wait()
	})
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// TestTLS: the server is verified, or nothing is attached.
func TestTLS(t *testing.T) {
	w := newWorld(t)
	authority := harness.NewAuthority(t, w.dir, "authority")
	port := w.tlsServer(authority.Issue(t, "server", "server", "localhost"))
	ca := authority.CA()
	client := authority.Issue(t, "client", "client")
	both := w.write("client-cert.pem", read(t, filepath.Join(client, "client-cert.pem"))+read(t, filepath.Join(client, "client-key.pem")))
	w.write("ca-cert.pem", read(t, ca))
	for _, c := range []struct {
		args string
		want string // of the errors; "" for success
	}{
		{"-N disk localhost " + port, "the server needs TLS: add -x"},
		{"-N disk localhost " + port + " -x", "name the authority by -A FILE"},
		{"nbds://localhost:" + port + "/disk", "name the authority by -A FILE"},
		{"-N disk localhost " + port + " -A " + ca, ""},
		{"-N disk localhost " + port + " -A " + ca + " -F " + both + " -K " + both, ""},
		{"-N disk localhost " + port + " -A " + ca + " -K " + both, ""},
		{"-N disk localhost " + port + " -A " + ca + " -F " + ca + " -K " + both, "client certificate"},
		{"nbds://localhost:" + port + "/disk?tls-certificates=" + w.dir, ""}, // the key is in the same file
		{"-N disk 127.0.0.1 " + port + " -A " + ca + " -H elsewhere.example", "the certificate is for other names"},
		{"-N disk 127.0.0.1 " + port + " -A " + ca + " -H localhost -y NORMAL:-VERS-TLS-ALL:+VERS-TLS1.2", ""},
		{"-N disk localhost " + port + " --tls-without-verification-anyone-can-be-the-server", ""},
		{"-N disk localhost " + port + " -A " + filepath.Join(w.dir, "none.pem"), "none.pem"},
		{"-N disk localhost " + port + " -x -y NORMAL:-VERS-ALL", "allows neither TLS 1.2 nor TLS 1.3"},
	} {
		line := strings.Fields(c.args)
		if c.want == "" {
			p := w.start(append(line, "-n")...)
			p.await("/dev/nbd0\n")
			w.roundTrip(0, "tls")
			p.signal(os.Interrupt)
			if status, _, errs := p.wait(); status != exitOK {
				t.Errorf("%s: ended with %d: %s", c.args, status, errs)
			}
		} else if status, _, errs := w.run(append(line, "-n")...); status != exitError || !strings.Contains(errs, c.want) {
			t.Errorf("%s: status %d, %s", c.args, status, errs)
		}
		// The same for the list of exports, which has no -N.
		if strings.HasPrefix(c.args, "-N disk") {
			line = line[2:]
		}
		status, out, errs := w.run(append(line, "-l")...)
		if c.want == "" && (status != exitOK || out != "disk\n") || c.want != "" && (status != exitError || !strings.Contains(errs, c.want)) {
			t.Errorf("%s -l: status %d, %q, %s", c.args, status, out, errs)
		}
	}
}

// TestSignals: SIGTERM leaves the device to the next process, unless it is ignored.
func TestSignals(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	p := w.start("-n", "--ignore-term", s.uri("disk"))
	p.await("/dev/nbd0\n")
	p.signal(syscall.SIGTERM)
	p.await("ignored: terminated")
	p.signal(syscall.SIGHUP)
	w.roundTrip(0, "still there")
	p.signal(os.Interrupt)
	if status, _, errs := p.wait(); status != exitOK || w.attached(0) {
		t.Errorf("after SIGINT: status %d, %s", status, errs)
	}
	// One that comes when the device has just been attached counts as well.
	for i := range 5 {
		p := w.start("-n", s.uri("disk"), "-i", fmt.Sprint(i), fmt.Sprintf("/dev/nbd%d", i%4))
		p.await("attached device=")
		p.signal(syscall.SIGTERM)
		if status, _, errs := p.wait(); status != exitOK {
			t.Errorf("after SIGTERM: status %d, %s", status, errs)
		}
		w.run("detach", fmt.Sprintf("nbd%d", i%4))
	}
}

// TestNotify: a service manager hears when the device can be used, what it does, and that
// the process lives.
func TestNotify(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	path := filepath.Join(w.dir, "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path) // where the library looks
	w.env["NOTIFY_SOCKET"] = path
	t.Setenv("WATCHDOG_USEC", "20000")
	p := w.start(s.uri("disk"), "nbd1") // in the foreground without -n
	want := []string{"READY=1", "STATUS=/dev/nbd1 nbd+unix:", ": attached", "WATCHDOG=1"}
	b := make([]byte, 4096)
	if err := l.SetReadDeadline(time.Now().Add(hang)); err != nil {
		t.Fatal(err)
	}
	for len(want) > 0 {
		n, err := l.Read(b)
		if err != nil {
			t.Fatalf("the service manager never hears %q: %v", want, err)
		}
		for len(want) > 0 && strings.Contains(string(b[:n]), want[0]) {
			want = want[1:]
		}
		if len(want) == 3 || len(want) == 2 {
			t.Errorf("whoever waits for it to be ready finds %q only", b[:n])
		}
	}
	p.signal(os.Interrupt)
	for {
		n, err := l.Read(b)
		if err != nil {
			t.Fatalf("the service manager does not hear of the end: %v", err)
		}
		if strings.Contains(string(b[:n]), "STOPPING=1") {
			break
		}
	}
	if status, _, errs := p.wait(); status != exitOK {
		t.Errorf("status %d, %s", status, errs)
	}
}

// TestNotNotified: what a script calls in somebody's unit does not stay because of that, nor
// does it speak for the unit.
func TestNotNotified(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20, "auto": 1 << 20})
	w.write("nbdtab", "nbd3 "+s.uri("auto")+" auto\n")
	w.start("supervisor").await("attached device=/dev/nbd3")
	t.Setenv(notifySocket, "@nobody")
	w.env[notifySocket], w.parent = "@nobody", 4711
	for _, line := range []string{s.uri("disk"), "--no-supervise -i other " + s.uri("disk")} {
		if status, _, errs := w.run(strings.Fields(line)...); status != exitOK || errs != "" {
			t.Errorf("%s: status %d, %s", line, status, errs)
		}
	}
	if os.Getenv(notifySocket) != "" {
		t.Error("processes that this one starts would speak for the unit")
	}
}

// TestPersist: what cannot be connected anew is not promised to be.
func TestPersist(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	for line, warned := range map[string]bool{"-n -p -L": true, "-n -L": false, "-n -p": false} {
		p := w.start(append(strings.Fields(line), s.uri("disk"), "/dev/nbd0")...)
		p.await("/dev/nbd0\n")
		p.signal(os.Interrupt)
		if status, _, errs := p.wait(); status != exitOK || strings.Contains(errs, "-persist has no effect with -nonetlink") != warned {
			t.Errorf("%s: status %d, %s", line, status, errs)
		}
	}
}

// TestWarnedOnce: what is odd about a command line is said by the process that was started,
// and not once more by those that go on for it.
func TestWarnedOnce(t *testing.T) {
	w := newWorld(t)
	w.loaded = false // nothing can be attached
	w.write("nbdtab", "nbd0 /nowhere x unix,oops\n")
	lines := map[string]string{
		"-u timeout=5 /nowhere":                 "out of use",
		"-u -p -L /nowhere":                     "no effect",
		"-x -H h -y NORMAL:%COMPAT -u /nowhere": "no effect",
		"-s --serve memory:1M":                  "no memory free",
		"nbd0":                                  "oops",
	}
	for line, text := range lines {
		if status, _, errs := w.run(strings.Fields("-n " + line)...); status != exitError || strings.Count(errs, text) != 1 {
			t.Errorf("%s: status %d, %s", line, status, errs)
		}
	}
	for line, text := range lines {
		r, parent, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fd, err := syscall.Dup(int(parent.Fd())) // the child's to close
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NBD_BACKGROUND_FD", strconv.Itoa(fd))
		if status, _, errs := w.run(strings.Fields(line)...); status != exitError || strings.Contains(errs, text) {
			t.Errorf("%s, in the background: status %d, %s", line, status, errs)
		}
		r.Close()
		parent.Close()
	}
}

// TestResume: the process after an upgrade goes on with what the one before had.
func TestResume(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	p := w.start("-n", s.uri("disk"), "nbd1")
	p.await("/dev/nbd1\n")
	p.signal(syscall.SIGTERM)
	p.wait()
	w.env[resumeVariable] = "resume"
	q := w.start("-n", s.uri("disk"), "nbd1")
	q.await("adopted device=/dev/nbd1")
	w.roundTrip(1, "resumed")
	if status, _, errs := w.run("detach", "nbd1"); status != exitOK {
		t.Errorf("detach: status %d, %s", status, errs)
	}
	if status, _, errs := q.wait(); status != exitOK {
		t.Errorf("status %d, %s", status, errs)
	}
	if status, _, errs := w.run("-n", s.uri("disk"), "nbd1"); status != exitError || !strings.Contains(errs, "none of the devices could be taken over") {
		t.Errorf("with nothing to go on with: status %d, %s", status, errs)
	}
}
