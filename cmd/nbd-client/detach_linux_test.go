package main

import (
	"encoding/json"
	"fmt"
	"net"
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

// TestDetachHungKeeper: a process that keeps a device and does not answer does not keep
// --force from detaching it.
func TestDetachHungKeeper(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	p := w.start("-n", s.uri("disk"))
	p.await("/dev/nbd0\n")
	list, err := supervise.States(filepath.Join(w.dir, "run"))
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	p.signal(syscall.SIGTERM)
	p.wait()
	l, err := net.Listen("unix", filepath.Join(w.dir, "mute"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	st := list[0]
	st.Control = l.Addr().String()
	text, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	w.write("run/nbd0.json", string(text))
	w.keeper = 20 * time.Millisecond
	status, _, errs := w.run("detach", "--force", "nbd0")
	if status != exitOK || w.attached(0) || !strings.Contains(errs, fmt.Sprint("does not answer pid=", st.Process.PID)) {
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
