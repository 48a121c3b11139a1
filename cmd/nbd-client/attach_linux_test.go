package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/kernel"
)

// TestAttach walks the whole way: attach, use, list, status, attach again, wait, detach.
func TestAttach(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 4 << 20})
	p := w.start("-n", s.uri("disk"))
	p.await("/dev/nbd0\n")
	w.roundTrip(0, "attached")

	status, out, errs := w.run("list", "--json")
	var list struct {
		Devices []struct {
			Device, Identifier, State string
			URIs                      []string
			Size                      int64
			Kept                      bool
			PID                       int
			Reconnects                *int
			InFlight                  *struct{ Reads, Writes *int } `json:"in_flight"`
			Since                     string
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil || status != exitOK || len(list.Devices) != 1 {
		t.Fatalf("list --json: status %d, %v: %s%s", status, err, out, errs)
	}
	d := list.Devices[0]
	if d.Device != "/dev/nbd0" || d.State != "attached" || d.Size != 4<<20 || !d.Kept || d.PID != os.Getpid() ||
		len(d.URIs) != 1 || d.URIs[0] != s.uri("disk") || d.Identifier != s.uri("disk") || d.Reconnects == nil || d.InFlight == nil || d.Since == "" {
		t.Errorf("list --json: %s", out)
	}
	if status, out, _ = w.run("list"); status != exitOK || !strings.Contains(out, "/dev/nbd0  4M") || !strings.Contains(out, "attached") {
		t.Errorf("list: status %d, %s", status, out)
	}
	for _, name := range []string{"nbd0", "/dev/nbd0", s.uri("disk")} {
		if status, out, _ = w.run("status", name); status != exitOK || !strings.Contains(out, "state:       attached\n") {
			t.Errorf("status %s: %d, %s", name, status, out)
		}
	}
	if status, out, _ = w.run("-c", "/dev/nbd0"); status != exitOK || out != fmt.Sprintln(os.Getpid()) {
		t.Errorf("-c: status %d, %q", status, out)
	}
	for _, name := range []string{"nbd0", "/dev/nbd0p1", "nbd0p1", s.uri("disk")} {
		if status, out, errs := w.run("-c", name); status != exitOK || out != fmt.Sprintln(os.Getpid()) {
			t.Errorf("-c %s: status %d, %q, %s", name, status, out, errs)
		}
	}
	for _, name := range []string{"foo", "nbd1p1", "/dev/nbd1p1", "/dev/nowhere", "/dev/null", "nbd9p1"} {
		if status, out, errs := w.run("-c", name); status != exitError || out != "" {
			t.Errorf("-c %s: status %d, %q, %s", name, status, out, errs)
		}
	}
	if status, out, _ = w.run("wait", "nbd0", "ready"); status != exitOK || out != "" {
		t.Errorf("wait: status %d, %q", status, out)
	}

	if status, out, _ = w.run("detach", "nbd0"); status != exitOK || out != "" {
		t.Errorf("detach: status %d, %q", status, out)
	}
	if status, _, errs = p.wait(); status != exitOK {
		t.Errorf("the process ended with %d: %s", status, errs)
	}
	if w.attached(0) {
		t.Error("the device is still attached")
	}
	for _, c := range []struct {
		line   string
		status int
	}{
		{"status nbd0", exitError}, {"-c /dev/nbd0", exitError}, {"-c /dev/nbd9", exitError}, {"wait nbd0 gone", exitOK},
		{"detach nbd0", exitOK}, {"-d /dev/nbd0", exitOK}, {"wait nbd0 ready --timeout 0", exitTimeout}, {"wait nbd9 gone", exitOK},
		{"-d /dev/nbd9", exitError}, {"resize nbd0", exitError}, {"list", exitOK}, {"upgrade", exitOK}, {"upgrade nbd0", exitError},
	} {
		if status, out, errs := w.run(strings.Fields(c.line)...); status != c.status {
			t.Errorf("%s: status %d, want %d: %s%s", c.line, status, c.status, out, errs)
		}
	}
}

// TestOldForms attaches as the reference's users do.
func TestOldForms(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"": 1 << 20, "disk": 2 << 20})
	w.write("nbdtab", "nbd3 "+s.socket+" disk unix,bs=4096,timeout=60,conns=2\n")
	for _, c := range []struct {
		line   string
		device int
		size   int64
	}{
		{"-unix SOCKET /dev/nbd1 -N disk -n", 1, 2 << 20},
		{"-n -u SOCKET /dev/nbd1", 1, 1 << 20},
		{"-u SOCKET /dev/nb2 -n -persist -name=disk", 2, 2 << 20},
		{"SOCKET nbd0 -u -n -Rp -N disk -B 1M -b 4096 -C 2 -t 5 -i mine", 0, 1 << 20},
		{"nbd3 -n", 3, 2 << 20},
		{"/dev/nbd3 -n -R", 3, 2 << 20},
	} {
		p := w.start(strings.Fields(strings.ReplaceAll(c.line, "SOCKET", s.socket))...)
		p.await(fmt.Sprintf("/dev/nbd%d\n", c.device))
		if a := w.device(indexOf(c.device)); a.Attached() == nil || a.Attached().Size != c.size {
			t.Errorf("%s: %+v", c.line, a.Attached())
		}
		if status, _, errs := w.run("-d", fmt.Sprintf("/dev/nbd%d", c.device)); status != exitOK {
			t.Errorf("%s: -d: status %d: %s", c.line, status, errs)
		}
		if status, _, errs := p.wait(); status != exitOK {
			t.Errorf("%s: the process ended with %d: %s", c.line, status, errs)
		}
	}
}

// TestService lets a supervisor keep devices that others hand to it: twice the same is one
// device, and one export may be attached to two devices, as old scripts do.
func TestService(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20, "auto": 2 << 20, "later": 3 << 20})
	w.write("nbdtab", "nbd3 "+s.uri("auto")+" auto\nnbd2 "+s.uri("later")+"\n")
	p := w.start("supervisor")
	p.await("attached device=/dev/nbd3")
	attach := func(want int, text string, line ...string) {
		t.Helper()
		if status, out, errs := w.run(line...); status != want || !strings.Contains(out+errs, text) {
			t.Errorf("%q: status %d, %s%s", line, status, out, errs)
		}
	}
	attach(exitOK, "/dev/nbd1\n", s.uri("disk"), "/dev/nbd1")
	attach(exitOK, "/dev/nbd1\n", s.uri("disk"), "/dev/nbd1")
	attach(exitOK, "/dev/nbd1\n", s.uri("disk"))
	attach(exitOK, "/dev/nbd0\n", s.uri("disk"), "/dev/nbd0")
	attach(exitOK, "/dev/nbd0\n", s.uri("disk"), "/dev/nbd0")
	if got := w.device(0).Attached().Identifier; got != s.uri("disk")+"#nbd0" {
		t.Errorf("the second one is known as %q", got)
	}
	attach(exitError, "is attached already, as /dev/nbd1, and not as /dev/nbd2", s.uri("disk"), "/dev/nbd2", "-i", s.uri("disk"))
	attach(exitError, "/dev/nbd1 has nbd+unix:", s.uri("disk"), "/dev/nbd1", "-i", "other")
	w.write("nbdtab", "nbd3 "+s.uri("auto")+" auto\nnbd2 "+s.uri("later")+" auto\n")
	p.signal(syscall.SIGHUP)
	p.await("attached device=/dev/nbd2")
	for i := range 4 {
		w.roundTrip(indexOf(i), "service")
	}
	attach(exitOK, "", "detach", "nbd0", "nbd2")
	if w.attached(0) || w.attached(2) || !w.attached(1) || !w.attached(3) {
		t.Error("the wrong devices are attached")
	}
	// It ends; what it keeps stays, and the next one goes on.
	p.signal(syscall.SIGTERM)
	if status, _, errs := p.wait(); status != exitOK || !w.attached(1) || !w.attached(3) {
		t.Errorf("after SIGTERM: status %d, %s", status, errs)
	}
	q := w.start("supervisor")
	q.await("kept on device=/dev/nbd1")
	q.await("kept on device=/dev/nbd3")
	w.roundTrip(1, "again")
	attach(exitOK, "attached\n", "status", "nbd1")
	attach(exitOK, "", "detach", "nbd1", "nbd3", s.uri("later"))
}

// TestSecondAlone: the second device of an export is attached already, also when the first one
// is gone, whoever keeps it, or nobody.
func TestSecondAlone(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20, "auto": 1 << 20})
	w.write("nbdtab", "nbd3 "+s.uri("auto")+" auto\n")
	p := w.start("supervisor")
	p.await("attached device=/dev/nbd3")
	attach := func(device string) {
		t.Helper()
		status, out, errs := w.run(s.uri("disk"), device)
		if status != exitOK || out != device+"\n" || strings.Contains(errs, "stays as it is") {
			t.Errorf("%s: status %d, %s%s", device, status, out, errs)
		}
	}
	attach("/dev/nbd0")
	attach("/dev/nbd1")
	if status, _, errs := w.run("detach", "nbd0"); status != exitOK {
		t.Fatalf("detach: status %d, %s", status, errs)
	}
	attach("/dev/nbd1")
	p.signal(syscall.SIGTERM)
	p.wait()
	q := w.start("-n", s.uri("disk"), "/dev/nbd1")
	q.await("adopted device=/dev/nbd1")
	q.signal(syscall.SIGTERM)
	q.wait()
	w.write("nbdtab", "nbd1 "+s.uri("disk")+" auto\n")
	w.start("supervisor").await("attached device=/dev/nbd1")
	if w.attached(0) || w.device(1).Attached().Identifier != s.uri("disk")+"#nbd1" {
		t.Error("it is attached anew")
	}
}

// TestServe attaches a file and a chain that the process serves itself.
func TestServe(t *testing.T) {
	w := newWorld(t)
	image := w.write("disk.img", strings.Repeat("x", 64<<10))
	p := w.start("-n", "--serve", "disk.img", "nbd1") // relative to where it was started
	p.await("/dev/nbd1\n")
	w.roundTrip(1, "served")
	if err := w.device(1).Flush(); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(image)
	if err != nil || !strings.HasPrefix(string(text[1024:]), "served-served-") {
		t.Errorf("the file holds %.20q at 1024, %v", text[1024:], err)
	}
	if status, out, _ := w.run("list"); status != exitOK || !strings.Contains(out, image) {
		t.Errorf("list: status %d, %s", status, out)
	}
	q := w.start("-n", "--serve", "disk.img | cow", "-C", "2")
	q.await("/dev/nbd0\n")
	w.roundTrip(0, "diff")
	text, err = os.ReadFile(image)
	if err != nil || !strings.HasPrefix(string(text[1024:]), "served-") {
		t.Errorf("what was written to the diff is in the file: %.20q, %v", text[1024:], err)
	}
	if status, _, errs := w.run("upgrade", "nbd1"); status != exitError || !strings.Contains(errs, "it serves /dev/nbd1 itself") {
		t.Errorf("upgrade: status %d, %s", status, errs)
	}
	// Nobody else could serve them: SIGTERM detaches.
	for _, x := range []*process{p, q} {
		x.signal(syscall.SIGTERM)
		if status, _, errs := x.wait(); status != exitOK {
			t.Errorf("after SIGTERM: status %d, %s", status, errs)
		}
	}
	if w.attached(0) || w.attached(1) {
		t.Error("a device without a server is still attached")
	}
	status, _, errs := w.run("-n", "--serve", "memery:1M")
	if status != exitError || !strings.Contains(errs, `did you mean "memory"?`) {
		t.Errorf("a chain that is none: status %d, %s", status, errs)
	}
}

// TestBusy: a device in use is detached only by force, and whoever uses it is named.
func TestBusy(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	p := w.start("-n", s.uri("disk"))
	p.await("/dev/nbd0\n")
	w.device(0).SetInfo(func(i *kernel.Info) { i.Mounts = []string{"/mnt"} })
	status, _, errs := w.run("detach", "nbd0")
	if status != exitBusy || !strings.Contains(errs, "detach nbd0: ") || !strings.Contains(errs, "/mnt") || !strings.Contains(errs, "--force") || !w.attached(0) {
		t.Errorf("detach: status %d, %s", status, errs)
	}
	p.signal(os.Interrupt)
	p.await("it stays attached; SIGTERM ends this process and leaves it attached")
	if status, _, errs := w.run("detach", "--force", "nbd0"); status != exitOK || w.attached(0) || !strings.Contains(errs, "/mnt") {
		t.Errorf("detach --force: status %d, %s", status, errs)
	}
	if status, _, errs := p.wait(); status != exitOK {
		t.Errorf("the process ended with %d: %s", status, errs)
	}
}

// TestOrphan: the process ends, the device stays, and another process takes it over.
func TestOrphan(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	p := w.start("-n", s.uri("disk"), "nbd2")
	p.await("/dev/nbd2\n")
	w.roundTrip(2, "first")
	p.signal(syscall.SIGTERM)
	if status, _, errs := p.wait(); status != exitOK || !w.attached(2) {
		t.Fatalf("after SIGTERM: status %d, %s", status, errs)
	}
	if status, out, _ := w.run("list"); status != exitOK || !strings.Contains(out, "orphaned") {
		t.Errorf("list: status %d, %s", status, out)
	}
	q := w.start("-n", s.uri("disk"))
	q.await("/dev/nbd2\n")
	w.roundTrip(2, "second")
	if status, out, _ := w.run("status", "nbd2"); status != exitOK || !strings.Contains(out, "keeps it") {
		t.Errorf("status: %d, %s", status, out)
	}
	q.signal(syscall.SIGTERM)
	q.wait()
	// And an orphan can be detached.
	if status, _, errs := w.run("detach", "nbd2"); status != exitOK || w.attached(2) {
		t.Errorf("detach: status %d, %s", status, errs)
	}
}

// TestAlone attaches as the reference does: nobody stays.
func TestAlone(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	status, out, errs := w.run("-u", s.socket, "-N", "disk", "--no-supervise", "-C", "3", "-T", "7", "/dev/nbd1")
	if status != exitOK || out != "/dev/nbd1\n" {
		t.Fatalf("status %d, %q, %s", status, out, errs)
	}
	a := w.device(1).Attached()
	if a == nil || len(w.device(1).Sockets()) != 3 || a.DeadTimeout.Seconds() != 7 || a.Identifier == "" {
		t.Errorf("%+v", a)
	}
	w.roundTrip(1, "alone")
	if status, out, _ = w.run("list"); status != exitOK || !strings.Contains(out, "unkept") {
		t.Errorf("list: status %d, %s", status, out)
	}
	if status, _, errs = w.run("resize", "nbd1"); status != exitError || !strings.Contains(errs, "no process keeps it, so nobody can ask the server") {
		t.Errorf("resize: status %d, %s", status, errs)
	}
	release, err := w.device(1).Claim()
	if err != nil {
		t.Fatal(err)
	}
	if status, _, errs = w.run("detach", "nbd1"); status != exitBusy || !strings.Contains(errs, "in another mount namespace") || !w.attached(1) {
		t.Errorf("detach what somebody holds: status %d, %s", status, errs)
	}
	release()
	if status, _, errs = w.run("detach", "nbd1"); status != exitOK || w.attached(1) {
		t.Errorf("detach: status %d, %s", status, errs)
	}
	status, _, errs = w.run("-x", "localhost", "--no-supervise", "/dev/nbd1")
	if status != exitError || !strings.Contains(errs, "TLS needs a process that stays") {
		t.Errorf("TLS: status %d, %s", status, errs)
	}
	status, _, errs = w.run("nbd+vsock://2:1/", "--no-supervise", "/dev/nbd1")
	if status != exitError || !strings.Contains(errs, "vsock needs a process that stays") {
		t.Errorf("vsock: status %d, %s", status, errs)
	}
}

// TestServeIsKeptAlone: what the process serves itself is not for the service, which may be
// replaced at any time.
func TestServeIsKeptAlone(t *testing.T) {
	w := newWorld(t)
	for line, want := range map[string]bool{"--serve disk.img": false, "server": true} {
		flags, err := clientflags.Parse(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		p := &program{env: w.environment(os.Stdout, os.Stderr, nil), flags: flags}
		if got := p.handsOver(); got != want {
			t.Errorf("%s: handed over: %t", line, got)
		}
	}
}
