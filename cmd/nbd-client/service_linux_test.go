package main

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/supervise"
)

// startSupervisor starts a service that keeps /dev/nbd0.
func (w *world) startSupervisor() *process {
	w.t.Helper()
	s := w.serve(map[string]int64{"disk": 1 << 20})
	w.write("nbdtab", "nbd0 "+s.uri("disk")+" auto\n")
	p := w.start("supervisor")
	p.await("attached device=/dev/nbd0")
	return p
}

// A second service takes the place of the first, whatever it was doing, and the devices
// never lose their keeper.
func TestTwoServices(t *testing.T) {
	w := newWorld(t)
	first := w.startSupervisor()
	const n = 4
	services := []*process{first}
	for range n {
		services = append(services, w.start("supervisor"))
	}
	// All but one end, without a fault.
	ended := make(chan *process, len(services))
	for _, p := range services {
		go func() {
			p.status <- <-p.status
			ended <- p
		}()
	}
	for range n {
		p := <-ended
		if status, _, errs := p.wait(); status != exitOK {
			t.Errorf("status %d: %s", status, errs)
		}
		services = slices.DeleteFunc(services, func(x *process) bool { return x == p })
	}
	services[0].await("kept on device=/dev/nbd0")
	w.roundTrip(0, "kept")
	list, err := supervise.States(filepath.Join(w.dir, "run"))
	if err != nil || len(list) != 1 || list[0].Phase != supervise.Attached || !list[0].Process.Running() {
		t.Errorf("%+v, %v", list, err)
	}
}

// A service that cannot keep anything takes nothing over.
func TestServiceThatFails(t *testing.T) {
	w := newWorld(t)
	first := w.startSupervisor()
	w.loaded = false
	if status, _, _ := w.run("supervisor"); status != exitError {
		t.Errorf("status %d without a kernel", status)
	}
	w.loaded = true
	if status, out, errs := w.run("status", "nbd0"); status != exitOK {
		t.Errorf("%d, %s%s", status, out, errs)
	}
	first.signal(syscall.SIGTERM)
	first.wait()
}

// TestServiceAdoptsLater: what a service cannot take over when it starts it takes over as soon
// as that is possible. Nobody else would keep it.
func TestServiceAdoptsLater(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	p := w.start("-n", s.uri("disk"))
	p.await("/dev/nbd0\n")
	p.signal(syscall.SIGTERM)
	p.wait()
	state, err := os.ReadFile(filepath.Join(w.dir, "run/nbd0.json"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("run/nbd0.json", "{")
	w.write("nbdtab", "")
	service := w.start("supervisor")
	service.await("nbd0.json: this is no state of a device: unexpected end of JSON input")
	w.write("run/nbd0.json", string(state))
	service.await("kept on device=/dev/nbd0")
	w.roundTrip(0, "kept")
	if status, out, errs := w.run("detach", "nbd0"); status != exitOK {
		t.Errorf("%d %s%s", status, out, errs)
	}
	service.signal(syscall.SIGTERM)
	service.wait()
}

// What is no socket stands in the way of a service, and stays.
func TestServiceWithoutSocket(t *testing.T) {
	w := newWorld(t)
	if err := os.Mkdir(filepath.Join(w.dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.write("run/supervisor.sock", "precious")
	if status, _, errs := w.run("supervisor"); status != exitError {
		t.Errorf("%d, %s", status, errs)
	}
}

// TestSwapPrepared: whoever keeps swap is prepared for it, however it came to it, once.
func TestSwapPrepared(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20, "swap": 1 << 20, "later": 1 << 20})
	w.write("nbdtab", "nbd0 "+s.uri("disk")+" auto\n")
	p := w.start("supervisor")
	p.await("attached device=/dev/nbd0")
	if n := w.locked.Load(); n != 0 {
		t.Errorf("prepared %d times without swap", n)
	}
	w.write("nbdtab", "nbd0 "+s.uri("disk")+" auto\nnbd1 "+s.uri("swap")+" auto,swap\n")
	p.signal(syscall.SIGHUP)
	p.await("attached device=/dev/nbd1")
	if n := w.locked.Load(); n != 1 {
		t.Errorf("prepared %d times with swap in nbdtab", n)
	}
	w.write("nbdtab", "nbd0 "+s.uri("disk")+" auto\nnbd1 "+s.uri("swap")+" auto,swap\nnbd2 "+s.uri("later")+" auto,swap\n")
	p.signal(syscall.SIGHUP)
	p.await("attached device=/dev/nbd2")
	if n := w.locked.Load(); n != 1 {
		t.Errorf("prepared %d times", n)
	}
	p.signal(syscall.SIGTERM)
	p.wait()
	w.write("nbdtab", "")
	q := w.start("supervisor")
	q.await("kept on device=/dev/nbd1")
	for until := time.Now().Add(hang); w.locked.Load() == 1 && time.Now().Before(until); {
		time.Sleep(time.Millisecond)
	}
	if status, out, errs := w.run("detach", "nbd0", "nbd1", "nbd2"); status != exitOK {
		t.Errorf("%d %s%s", status, out, errs)
	}
	q.signal(syscall.SIGTERM)
	q.wait()
	if n := w.locked.Load(); n != 2 {
		t.Errorf("prepared %d times, one of them for what was taken over", n)
	}
}
