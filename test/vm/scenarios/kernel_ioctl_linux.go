package scenarios

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// kernelIoctlDeath lets connections die under devices that were attached by the old calls,
// and the process that attached them: such a device dies with either, and everything that
// waits gets an error.
func kernelIoctlDeath(t *guest.T) {
	for _, n := range []int{1, 2} {
		d := openDriver(t, true)
		l := guest.ServeLocal(t, disk(t, 8*mib), false)
		h := hold(t, d, l, "pair", n, kernel.Attach{Index: 1})
		f := guest.Direct(t, h.i.Path())
		guest.WriteAt(t, f, guest.Filled(1, 4096), 0)
		l.Kill()
		t.Await("requests fail", func() bool {
			_, err := f.WriteAt(guest.Filled(2, 4096), 0)
			return err != nil
		})
		f.Close()
		_, err := kernel.AwaitGone(within(t), d, h.i)
		t.Must(err, "gone after the connections died")
	}

	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib)
	s := serve(t, image)
	for _, how := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		p := attachOld(t, s, "-C", "2")
		f := guest.Direct(t, "/dev/nbd2")
		guest.WriteAt(t, f, guest.Filled(1, 4096), 0)
		if how == syscall.SIGKILL {
			guest.StopProcess(t, s.PID())
			done := make(chan error, 1)
			go func() { _, err := f.WriteAt(guest.Filled(2, 4096), 0); done <- err }()
			t.Await("a write waits", func() bool { _, w := guest.InFlight(t, "nbd2"); return w == 1 })
			p.Kill()
			if err := <-done; !isEIO(err) {
				t.Errorf("a write that waited when the process was killed: %v", err)
			}
			s.Signal(syscall.SIGCONT)
			f.Close()
		} else {
			f.Close()
			p.Signal(how)
			t.Must(p.Wait(), "end by "+how.String())
		}
		_, err := kernel.AwaitGone(within(t), openDriver(t, true), 2)
		t.Must(err, "gone after the process ended by "+how.String())
	}
	guest.AwaitConnections(t, s, 0)

	// A server that ends takes the device along, and the program says so.
	p := attachOld(t, s)
	s.Kill()
	if err := p.Wait(); err == nil || !strings.Contains(p.Log(), "what is attached by ioctl cannot be connected again") {
		t.Errorf("the program ended with %v and said %s", err, p.Log())
	}
	if pid, err := os.ReadFile("/sys/block/nbd2/pid"); err == nil {
		t.Errorf("the device is attached still, by process %s", strconv.Quote(string(pid)))
	}
}

// attachOld has our client attach /dev/nbd2 by the old calls, and waits until it has done so.
func attachOld(t *guest.T, s *harness.Server, args ...string) *harness.Process {
	p := harness.Spawn(t, nil, guest.ClientPath, append(args, "-L", "-n", s.URI("disk"), "/dev/nbd2")...)
	t.Await("it is attached", func() bool { return strings.Contains(p.Log(), "/dev/nbd2\n") })
	return p
}
