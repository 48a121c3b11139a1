package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/test/harness"
)

// old is a driver of the old kind: what it has attached ends with the process.
type old struct{ *kerneltest.Driver }

func (old) Can() kernel.Abilities { return kernel.Abilities{AnyIndex: true} }

// use has somebody mount a device, or unmount it.
func (w *world) use(i kernel.Index, mounts ...string) {
	w.t.Helper()
	w.device(i).SetInfo(func(info *kernel.Info) { info.Mounts = mounts })
}

// secret serves an export by TLS, and returns what attaches it.
func (w *world) secret() []string {
	w.t.Helper()
	authority := harness.NewAuthority(w.t, w.dir, "authority")
	port := w.tlsServer(authority.Issue(w.t, "server", "server", "localhost"))
	return []string{"nbds://localhost:" + port + "/disk", "-A", authority.CA()}
}

// waits wants a device that stays attached without a connection.
func (w *world) waits(name string) {
	w.t.Helper()
	if status, out, errs := w.run("status", name); status != exitWaiting || !strings.Contains(out, "orphaned") || !strings.Contains(out, " dead\n") {
		w.t.Errorf("status: %d, %s%s", status, out, errs)
	}
	if status, out, _ := w.run("status", name, "--json"); status != exitWaiting || strings.Contains(out, `"alive": true`) {
		w.t.Errorf("status: %d, %s", status, out)
	}
	if status, _, errs := w.run("wait", name, "ready", "--timeout", "50ms"); status != exitTimeout {
		w.t.Errorf("wait: %d, %s", status, errs)
	}
}

// TestTerm: SIGTERM ends a process below whose devices nothing would answer any more only
// when nobody uses them, or at the second time. How they are attached does not matter.
func TestTerm(t *testing.T) {
	for name, line := range map[string]func(*world) []string{
		"serve": func(w *world) []string { return []string{"--serve", w.write("disk.img", strings.Repeat("x", 64<<10))} },
		"tls":   (*world).secret,
		"ioctl": func(w *world) []string { return []string{"-L", w.serve(map[string]int64{"disk": 1 << 20}).uri("disk")} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.old = name == "ioctl"
			line := line(w)
			start := func() *process {
				p := w.start(append(append([]string{"-n"}, line...), "nbd1")...)
				p.await("/dev/nbd1\n")
				return p
			}
			// Nobody uses it.
			p := start()
			p.signal(syscall.SIGTERM)
			if status, _, errs := p.wait(); status != exitOK || w.attached(1) {
				t.Errorf("unused: status %d, %s", status, errs)
			}
			// Somebody does.
			p = start()
			w.use(1, "/mnt")
			p.signal(os.Interrupt)
			p.await("it stays attached; SIGTERM detaches it and ends this process as soon as nobody uses it")
			p.signal(syscall.SIGTERM)
			p.await("/dev/nbd1 is in use: mounted on /mnt; its connections end with this process")
			w.roundTrip(1, "in use")
			w.use(1)
			if status, _, errs := p.wait(); status != exitOK || w.attached(1) {
				t.Errorf("after the last user: status %d, %s", status, errs)
			}
			// Somebody does, and whoever ends the process cannot wait.
			p = start()
			w.use(1, "/mnt")
			p.signal(syscall.SIGTERM)
			p.await("is in use")
			p.signal(syscall.SIGTERM)
			if status, _, errs := p.wait(); status != exitError || !w.attached(1) || w.old == strings.Contains(errs, "stays attached without a connection") {
				t.Errorf("at the second time: status %d, %s", status, errs)
			}
			if w.old {
				return // here the kernel would have let go
			}
			w.waits("nbd1")
			p = start()
			if status, _, errs := w.run("wait", "nbd1", "ready"); status != exitOK {
				t.Errorf("wait: %d, %s", status, errs)
			}
			w.roundTrip(1, "again")
			if status, out, errs := w.run("status", "nbd1"); status != exitOK || !strings.Contains(out, " alive\n") {
				t.Errorf("status: %d, %s%s", status, out, errs)
			}
			w.use(1)
			p.signal(syscall.SIGTERM)
			if status, _, errs := p.wait(); status != exitOK || w.attached(1) {
				t.Errorf("in the end: status %d, %s", status, errs)
			}
		})
	}
}

// TestTermService: a service ends at once, since the next one connects its devices anew; but
// not when the machine goes down.
func TestTermService(t *testing.T) {
	w := newWorld(t)
	line := w.secret()
	w.write("nbdtab", fmt.Sprintf("nbd0 %s auto,cacertfile=%s\n", line[0], line[2]))
	p := w.start("supervisor")
	p.await("attached device=/dev/nbd0")
	w.use(0, "/mnt")
	p.signal(syscall.SIGTERM)
	if status, _, errs := p.wait(); status != exitOK || !w.attached(0) || !strings.Contains(errs, "/dev/nbd0 stays attached without a connection") {
		t.Errorf("status %d, %s", status, errs)
	}
	w.waits("nbd0")
	p = w.start("supervisor")
	p.await("reconnected")
	w.stopping = true
	p.signal(syscall.SIGTERM)
	p.await("its connections end with this process")
	w.roundTrip(0, "unmounting")
	w.use(0)
	if status, _, errs := p.wait(); status != exitOK || w.attached(0) {
		t.Errorf("when the machine goes down: status %d, %s", status, errs)
	}
}
