package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise"
)

// TestDetachMounted: the process that keeps a device may live in another root, and see no
// mount. What the one sees that is told to detach counts, too.
func TestDetachMounted(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	p := w.start("-n", s.uri("disk"))
	p.await("/dev/nbd0\n")
	var looks atomic.Int64
	w.device(0).SetInfo(func(i *kernel.Info) {
		if looks.Add(1) == 1 {
			i.Mounts = []string{"/"}
		}
	})
	status, _, errs := w.run("detach", "nbd0")
	if status != exitBusy || !strings.Contains(errs, "mounted on /") || !w.attached(0) {
		t.Errorf("status %d, %s; attached %v", status, errs, w.attached(0))
	}
	w.device(0).SetInfo(nil)
	w.roundTrip(0, "still there")
	if status, _, errs := w.run("detach", "nbd0"); status != exitOK {
		t.Errorf("when nobody uses it: status %d, %s", status, errs)
	}
	p.wait()
}

// orphan attaches /dev/nbd0 and lets its keeper end. Whoever wants to speak with the keeper
// finds what is returned.
func (w *world) orphan(words ...string) (l net.Listener, keeper int) {
	t := w.t
	t.Helper()
	p := w.start(append([]string{"-n"}, words...)...)
	p.await("/dev/nbd0\n")
	list, err := supervise.States(filepath.Join(w.dir, "run"))
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	p.signal(syscall.SIGTERM)
	p.wait()
	if l, err = net.Listen("unix", filepath.Join(w.dir, "mute")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	st := list[0]
	st.Control = l.Addr().String()
	text, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	w.write("run/nbd0.json", string(text))
	return l, st.Process.PID
}

// TestDetachHungKeeper: a process that keeps a device and does not answer does not keep
// --force from detaching it.
func TestDetachHungKeeper(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	_, keeper := w.orphan(s.uri("disk"))
	w.keeper = 20 * time.Millisecond
	status, _, errs := w.run("detach", "--force", "nbd0")
	if status != exitOK || w.attached(0) || !strings.Contains(errs, fmt.Sprint("does not answer pid=", keeper)) {
		t.Errorf("status %d, %s; attached %v", status, errs, w.attached(0))
	}
}

// TestDetachReplaced: --force does not detach what somebody else has attached under the number
// while the process that kept it was asked.
func TestDetachReplaced(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20, "other": 1 << 20})
	l, _ := w.orphan("-i", "mine", s.uri("disk"))
	w.keeper = hang
	answered := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			answered <- err
			return
		}
		defer c.Close()
		driver := w.kernel.Open()
		defer driver.Close()
		if err = driver.Disconnect(t.Context(), 0); err == nil {
			_, err = kernel.AwaitGone(t.Context(), driver, 0)
		}
		if status, _, errs := w.run("--no-supervise", "-i", "other", s.uri("other"), "/dev/nbd0"); err == nil && status != exitOK {
			err = errors.New(errs)
		}
		_, failed := c.Write([]byte(`{"error":"it is too late"}` + "\n"))
		answered <- errors.Join(err, failed)
	}()
	status, _, errs := w.run("detach", "--force", "nbd0")
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	if status != exitError || !strings.Contains(errs, "has been attached to something else") || !w.attached(0) {
		t.Errorf("status %d, %s; attached %v", status, errs, w.attached(0))
	}
}

// TestDetachOpen: a device that no process keeps, and that somebody has open, is in use,
// unless that is over in a moment.
func TestDetachOpen(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	p := w.start("-n", s.uri("disk"))
	p.await("/dev/nbd0\n")
	p.signal(syscall.SIGTERM)
	p.wait()
	w.openers = func(i *kernel.Info) { i.Openers = []kernel.Opener{{PID: 4711, Command: "qemu"}} }
	status, _, errs := w.run("detach", "nbd0")
	if status != exitBusy || !strings.Contains(errs, "open in process 4711 (qemu)") || !w.attached(0) {
		t.Errorf("status %d, %s; attached %v", status, errs, w.attached(0))
	}
	looks := 0
	w.openers = func(i *kernel.Info) {
		i.Openers = []kernel.Opener{}
		if looks++; looks < 3 {
			i.Openers = []kernel.Opener{{PID: 4712, Command: "udevd"}}
		}
	}
	if status, _, errs := w.run("detach", "nbd0"); status != exitOK || looks != 3 || w.attached(0) {
		t.Errorf("opened for a moment: status %d, %s; looked %d times", status, errs, looks)
	}
}

// TestDetachHeldByForce: --force ends also for what is mounted and that nobody keeps. The
// kernel lets go of it when it is unmounted.
func TestDetachHeldByForce(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	if status, _, errs := w.run("--no-supervise", s.uri("disk"), "nbd0"); status != exitOK {
		t.Fatalf("attach: status %d, %s", status, errs)
	}
	w.device(0).SetInfo(func(i *kernel.Info) { i.PID, i.Mounts = 4711, []string{"/mnt"} })
	status, _, errs := w.run("detach", "--force", "nbd0")
	if status != exitOK || w.attached(0) || !strings.Contains(errs, "mounted on /mnt; it is detached, and will be gone when they let go of it") {
		t.Errorf("status %d, %s; attached %v", status, errs, w.attached(0))
	}
}

// TestLeftHeld: what was detached by force and is still mounted is attached no more, for
// everybody who asks, though the kernel shows it until it is unmounted.
func TestLeftHeld(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	if status, _, errs := w.run("--no-supervise", s.uri("disk"), "nbd0"); status != exitOK {
		t.Fatalf("attach: status %d, %s", status, errs)
	}
	release, err := w.device(0).Open()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	w.device(0).SetInfo(func(i *kernel.Info) { i.Mounts = []string{"/mnt"} })
	for _, c := range []struct {
		line   string
		status int
		said   string
	}{
		{"status nbd0", exitOK, "used:"},
		{"detach --force nbd0", exitOK, "will be gone when they let go of it"},
		{"status nbd0", exitError, "mounted on /mnt"},
		{"status " + s.uri("disk"), exitError, "is not attached"},
		{"-c nbd0", exitError, ""},
		{"wait nbd0 ready --timeout=0.01", exitTimeout, "detached"},
		{"wait nbd0 gone --timeout=0.01", exitTimeout, "detached"},
		{"detach nbd0", exitBusy, "mounted on /mnt; it is detached, and will be gone"},
		{"detach --force nbd0", exitOK, "mounted on /mnt; it is detached, and will be gone"},
	} {
		status, out, errs := w.run(strings.Fields(c.line)...)
		if status != c.status || !strings.Contains(out+errs, c.said) {
			t.Errorf("%s: status %d, %s%s", c.line, status, out, errs)
		}
	}
	if status, out, errs := w.run("list"); status != exitOK || strings.Contains(out, "/dev/nbd0") {
		t.Errorf("list: status %d, %s%s", status, out, errs)
	}
}

// TestStatusReasons: each server that cannot be reached has a line of its own.
func TestStatusReasons(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := &program{env: &environment{stdout: f}}
	if err := p.printStatus(&description{Device: "/dev/nbd0", State: "reconnecting", Reason: "nbd://a/: gone\nnbd://b/: odd \x1b[2J"}); err != nil {
		t.Fatal(err)
	}
	out, err := os.ReadFile(f.Name())
	if err != nil || !strings.Contains(string(out), "reason:  nbd://a/: gone\nreason:  \"nbd://b/: odd \\x1b[2J\"\n") {
		t.Errorf("%q, %v", out, err)
	}
}

// TestStatusOpeners: status names the processes that have a device open, attached or not; and
// so does whoever finds it in use.
func TestStatusOpeners(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	w.alone(0, s.uri("disk"))
	release, err := w.device(1).Open()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	w.openers = func(i *kernel.Info) { i.Openers = []kernel.Opener{{PID: 4711, Command: "qemu"}} }
	for _, c := range []struct {
		line   string
		status int
		said   string
	}{
		{"status nbd0", exitOK, "open in process 4711 (qemu)"},
		{"status nbd1", exitError, "open in process 4711 (qemu)"},
		{"status nbd0 --json", exitOK, `"openers": [`},
		{"-n -i other " + s.uri("disk") + " nbd1", exitError, "/dev/nbd1 is in use: open in process 4711 (qemu)"},
	} {
		if status, out, errs := w.run(strings.Fields(c.line)...); status != c.status || !strings.Contains(out+errs, c.said) {
			t.Errorf("%s: status %d, %s%s", c.line, status, out, errs)
		}
	}
}

// TestOnlyOpen: a device that is free, and that somebody has open, as udev has at times, is
// not attached, though the driver says that it is connected.
func TestOnlyOpen(t *testing.T) {
	w := newWorld(t)
	release, err := w.device(2).Open()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if !w.attached(2) {
		t.Fatal("the driver does not say that it is connected: nothing is tried here")
	}
	for _, c := range []struct {
		line   string
		status int
		said   string
	}{
		{"-c /dev/nbd2", exitError, ""},
		{"status nbd2", exitError, "detached"},
		{"wait nbd2 gone", exitOK, ""},
		{"wait nbd2 ready --timeout 0", exitTimeout, "is not ready"},
		{"resize nbd2", exitError, "not attached"},
		{"detach nbd2", exitOK, "/dev/nbd2 is not attached"},
		{"-d /dev/nbd2", exitOK, "/dev/nbd2 is not attached"},
	} {
		if status, out, errs := w.run(strings.Fields(c.line)...); status != c.status || !strings.Contains(out+errs, c.said) || c.said == "" && out != "" {
			t.Errorf("%s: status %d, %s%s", c.line, status, out, errs)
		}
	}
	if status, out, _ := w.run("list"); status != exitOK || strings.Contains(out, "nbd2") {
		t.Errorf("list: status %d, %s", status, out)
	}
}

// TestDetachLeft: what was detached while somebody had it open is gone when he closes it, and
// detach waits for that.
func TestDetachLeft(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	if status, _, errs := w.run("--no-supervise", s.uri("disk"), "nbd0"); status != exitOK {
		t.Fatalf("attach: status %d, %s", status, errs)
	}
	var looks atomic.Int64
	w.device(0).SetInfo(func(i *kernel.Info) {
		if i.PID = 0; looks.Add(1) > 5 {
			i.Size = 0
		}
	})
	if status, _, errs := w.run("detach", "nbd0"); status != exitOK || looks.Load() <= 5 {
		t.Errorf("status %d after %d looks, %s", status, looks.Load(), errs)
	}
}
