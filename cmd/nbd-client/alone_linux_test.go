package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/internal/memlock"
	"nbd.example/nbd/kernel"
)

// alone attaches a device that nobody keeps.
func (w *world) alone(device kernel.Index, words ...string) *kernel.Attach {
	w.t.Helper()
	status, out, errs := w.run(append([]string{"--no-supervise"}, words...)...)
	if status != exitOK || out != device.Path()+"\n" {
		w.t.Fatalf("%q: status %d, %q, %s", words, status, out, errs)
	}
	a := w.device(device).Attached()
	if a == nil {
		w.t.Fatalf("%q: %s is not attached", words, device.Path())
	}
	return a
}

// TestAloneOptions: what is said of servers and of failures holds for devices, too, that
// nobody keeps.
func TestAloneOptions(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	dead := "nbd+unix:///disk?socket=" + filepath.Join(w.dir, "dead")
	if a := w.alone(0, dead, s.uri("disk")); a.DeadTimeout != 0 || a.Timeout != 0 {
		t.Errorf("as the reference does: requests wait %v for a connection, and %v for an answer", a.DeadTimeout, a.Timeout)
	}
	w.roundTrip(0, "the second server")
	if a := w.alone(1, s.uri("disk"), "-i", "wait", "--on-failure=wait", "-t", "7"); a.DeadTimeout < 365*24*time.Hour || a.Timeout != 7*time.Second {
		t.Errorf("requests wait %v for a connection, and %v for an answer", a.DeadTimeout, a.Timeout)
	}
	if a := w.alone(2, s.uri("disk"), "-i", "error", "--on-failure=error"); a.DeadTimeout != 0 {
		t.Errorf("requests wait %v for a connection", a.DeadTimeout)
	}
	for _, more := range [][]string{{"nbds://h/disk"}, {"nbd+vsock://2:1/disk"}} {
		if status, _, errs := w.run(append([]string{"--no-supervise", s.uri("disk")}, more...)...); status != exitError || !strings.Contains(errs, "needs a process that stays") {
			t.Errorf("%q: status %d, %s", more, status, errs)
		}
	}
	entries, err := filepath.Glob(filepath.Join(w.dir, "run", "*.json"))
	if err != nil || len(entries) != 0 {
		t.Errorf("there are files of devices that nobody keeps: %q, %v", entries, err)
	}
}

// TestAloneRetry: a server that comes later is waited for.
func TestAloneRetry(t *testing.T) {
	w := newWorld(t)
	p := w.start("--no-supervise", "--retry", "1h", "nbd+unix:///disk?socket="+filepath.Join(w.dir, "s"))
	p.await("waiting for a server")
	w.serve(map[string]int64{"disk": 1 << 20})
	if status, out, errs := p.wait(); status != exitOK || out != "/dev/nbd0\n" {
		t.Errorf("status %d, %q, %s", status, out, errs)
	}
	w.roundTrip(0, "late")
}

// TestAloneTwice: the same export is not attached twice, whoever keeps the first device, or
// nobody.
func TestAloneTwice(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20, "kept": 1 << 20})
	w.alone(0, s.uri("disk"))
	w.alone(0, s.uri("disk"))
	w.alone(0, s.uri("disk"), "/dev/nbd0")
	w.start("-n", s.uri("kept")).await("/dev/nbd1\n")
	w.alone(1, s.uri("kept"))
	for _, c := range []struct{ line, want string }{
		{"--no-supervise -R " + s.uri("disk"), "can be written, which is not wanted"},
		{"--no-supervise -b 4096 " + s.uri("disk"), "with blocks of 512 bytes and not of 4096"},
		{"-n " + s.uri("disk"), "is attached as /dev/nbd0 already, and no process keeps it"},
		{"-n -i " + s.uri("disk") + " " + s.uri("disk") + " /dev/nbd2", "is attached already, as /dev/nbd0, and not as /dev/nbd2"},
	} {
		if status, out, errs := w.run(strings.Fields(c.line)...); status != exitError || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%s: status %d, %s%s", c.line, status, out, errs)
		}
	}
	if w.attached(2) || w.attached(3) {
		t.Error("an export is attached a second time")
	}
	// Whoever names another device gets one.
	w.alone(2, s.uri("disk"), "/dev/nbd2")
	w.start("-n", s.uri("disk"), "/dev/nbd3").await("/dev/nbd3\n")
	if got := w.device(3).Attached().Identifier; got != s.uri("disk")+"#nbd3" {
		t.Errorf("the other one is known as %q", got)
	}
}

// TestAloneSwap: for a process that does not stay nothing is prepared, but for the system's
// reserve.
func TestAloneSwap(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	w.alone(0, "-swap", "--raise-reserve", s.uri("disk"))
	if got := w.lockOptions.Load(); got == nil || *got != (memlock.Options{RaiseReserve: true, SystemOnly: true}) {
		t.Errorf("prepared by %+v", got)
	}
}

// TestPreInitLikeOthers: what is not negotiated is attached in the same way: by one
// connection, since nothing says that there may be more, to the server that answers, once.
func TestPreInitLikeOthers(t *testing.T) {
	w := newWorld(t)
	path, _ := w.bare(1 << 20)
	line := fmt.Sprintf("-P -B 1M -C 3 nbd+unix:///?socket=%s/dead nbd+unix:///?socket=%s", w.dir, path)
	for range 2 {
		if status, out, errs := w.run(strings.Fields(line)...); status != exitOK || out != "/dev/nbd0\n" {
			t.Fatalf("status %d, %q, %s", status, out, errs)
		}
	}
	if n := len(w.device(0).Sockets()); n != 1 {
		t.Errorf("%d connections", n)
	}
	w.roundTrip(0, "bare")
	w.run("detach", "nbd0")
}
