package scenarios

import (
	"path/filepath"
	"strings"
	"time"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// onFailure lets the server die under devices whose users want to be told: at once, or
// after a while. When the server is back, so is the device.
func onFailure(t *guest.T) {
	failing(t, "error", 0)
	failing(t, "wait:3", 3*time.Second)
}

// failing does it with a policy by which a request waits so long at least.
func failing(t *guest.T, policy string, least time.Duration) {
	s := serve(t, guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib))
	k := guest.Keep{URIs: []string{s.TCPURI("nbd", "disk")}, Connections: 2, Args: []string{"-t", "3", "--on-failure=" + policy}}.Do(t, 0)
	f := guest.Direct(t, k.Path)
	for round := range 2 {
		data := guest.Filled(uint64(round), 64<<10)
		guest.WriteAt(t, f, data, 4096)
		killWith(t, s, k, policy == "error")
		began := time.Now()
		if _, err := f.ReadAt(guest.Buffer(4096), 4096); !isEIO(err) {
			t.Errorf("%s: read without a server: %v, want EIO", policy, err)
		}
		if took := time.Since(began); took < least {
			t.Errorf("%s: a read failed after %v already", policy, took)
		}
		if _, err := f.WriteAt(guest.Filled(9, 4096), 1*mib); !isEIO(err) {
			t.Errorf("%s: write without a server: %v, want EIO", policy, err)
		}
		wantClient(t, 3, "reconnecting", "status", k.Path)
		s.Restart(t)
		t.Await(policy+": the device works again", func() bool {
			_, err := f.ReadAt(guest.Buffer(4096), 0)
			return err == nil
		})
		guest.ReadBack(t, f, data, 4096)
	}
	f.Close()
	k.Detach()
	s.Stop()
}

// killWith kills the server, and returns when all connections are dead. With a write under
// way, that one fails when the kernel's timer for it has run out.
func killWith(t *guest.T, s *harness.Server, k *guest.Keeper, underWay bool) {
	deaths := func() int { return strings.Count(k.Log(), "a connection has died") }
	t.Await("all connections are there", func() bool {
		_, out, _ := nbdClient(t, "status", k.Path)
		return strings.Contains(out, "state:       attached\n")
	})
	before := deaths()
	var ended chan error
	if underWay {
		guest.StopProcess(t, s.PID())
		ended = make(chan error, 1)
		f := guest.Direct(t, k.Path)
		defer f.Close()
		go func() { _, err := f.WriteAt(guest.Filled(8, 4096), 2*mib); ended <- err }()
		t.Await("the write is under way", func() bool { _, writes := guest.InFlight(t, k.Name); return writes == 1 })
	}
	s.Kill()
	t.Await("all connections are dead", func() bool { return deaths() >= before+2 })
	if underWay {
		if err := <-ended; !isEIO(err) {
			t.Errorf("a write that was under way: %v, want EIO", err)
		}
	}
}

// forced detaches a device by force that hangs under a mounted file system: its server is
// gone, or stands, and somebody waits for it. He is told of the error, the file system can be
// unmounted, and then the device is free.
func forced(t *guest.T) {
	for _, connections := range []int{1, 4} {
		for _, gone := range []bool{true, false} {
			forcedOf(t, connections, gone)
		}
	}
}

func forcedOf(t *guest.T, connections int, gone bool) {
	s := serve(t, guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib))
	k := guest.Keep{URIs: []string{s.TCPURI("nbd", "disk")}, Connections: connections}.Do(t, 0)
	awaitAttached(t, k)
	guest.Mkfs(t, k.Path)
	m := guest.Mount(t, k.Path, "")
	t.Must(syncedWrite(filepath.Join(m.Dir, "before"), guest.Filled(1, 4096)), "write")
	guest.StopProcess(t, s.PID())
	wrote := make(chan error, 1)
	go func() { wrote <- syncedWrite(filepath.Join(m.Dir, "file"), guest.Filled(2, 64<<10)) }()
	t.Await("somebody waits", func() bool { return guest.BlockedThreads(t) > 0 })
	if gone {
		s.Kill()
		t.Await("the connections are dead", func() bool { return strings.Count(k.Log(), "a connection has died") >= connections })
	}
	wantClient(t, 0, "mounted on "+m.Dir, "detach", "--force", k.Path)
	if err := <-wrote; err == nil {
		t.Error("a write is said to be stable that no server has answered")
	}
	m.Unmount()
	wantClient(t, 0, "", "wait", k.Path, "gone", "--timeout", "60")
	if err := k.Process.Wait(); err != nil {
		t.Errorf("nbd-client ended by: %v", err)
	}
	k.Gone()
	if !gone {
		s.Kill()
	}
}
