package scenarios

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// clientEnds ends processes while their devices are mounted and cannot do without them.
func clientEnds(t *guest.T) {
	t.Cleanup(func() { detachAll(t) })
	dir := t.TempDir()
	image := func(name string) string {
		path := guest.Empty(t, filepath.Join(dir, name), 64*mib)
		guest.Mkfs(t, path)
		return path
	}
	served := image("served.img")
	endMounted(t, served, guest.Keep{Args: []string{"--serve", served}, Connections: 2})
	plain := image("plain.img")
	s := serve(t, plain)
	endMounted(t, plain, guest.Keep{Args: []string{"-L"}, URIs: []string{s.URI("disk")}})
	s.Stop()
	secret := image("secret.img")
	authority := harness.NewAuthority(t, dir, "authority")
	client := authority.Issue(t, "client", "client")
	s = harness.Start(t, harness.Config{
		Generic: "force_tls = true\n" + harness.ServerLines(authority.Issue(t, "server", "server", "localhost"), authority.CA()),
		Exports: "[disk]\nexportname = " + secret + "\n", TCP: true,
	})
	keys := []string{"-A", authority.CA(), "-F", filepath.Join(client, "client-cert.pem"), "-K", filepath.Join(client, "client-key.pem"), "-t", "3"}
	endMounted(t, secret, guest.Keep{Args: keys, URIs: []string{s.TCPURI("nbds", "disk")}})
	endAtOnce(t, secret, append(keys, s.TCPURI("nbds", "disk")))
	s.Stop()
	endAtOnce(t, served, []string{"-t", "3", "--serve", served})
	endLost(t, served)
}

// endMounted sends SIGTERM once: the process stays until the device is unmounted.
func endMounted(t *guest.T, image string, how guest.Keep) {
	k := how.Do(t, 0)
	m := guest.Mount(t, k.Path, "")
	before := guest.WriteTree(t, m.Dir, 1, 40)
	k.Signal(unix.SIGTERM)
	k.AwaitText("stays until nobody uses it")
	after := guest.WriteTree(t, filepath.Join(m.Dir, "after"), 2, 40)
	m.Sync()
	guest.DropCaches(t)
	before.Verify(t, m.Dir)
	after.Verify(t, filepath.Join(m.Dir, "after"))
	wantClient(t, 0, "state:       attached\n", "status", k.Path)
	m.Unmount()
	k.Gone()
	if err := k.Wait(); err != nil {
		t.Errorf("after the device was unmounted, nbd-client ended by: %v", err)
	}
	wantClient(t, 1, "", "status", k.Path)
	guest.Fsck(t, image)
}

// endTwice attaches in the background, mounts, and sends SIGTERM again and again: the process ends, and
// what is written to the file system from then on waits.
func endTwice(t *guest.T, line []string) (m *guest.Mounted, written <-chan error) {
	const dev = "/dev/nbd0"
	wantClient(t, 0, dev, append(line, dev)...)
	m = guest.Mount(t, dev, "")
	pid, err := strconv.Atoi(strings.TrimSpace(wantClient(t, 0, "", "-c", dev)))
	t.Must(err, "the keeper's number")
	// Of two that come at the same time it would see one.
	t.Await("the process ends", func() bool { return syscall.Kill(pid, unix.SIGTERM) != nil })
	ended := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(filepath.Join(m.Dir, "waits"), os.O_CREATE|os.O_WRONLY|unix.O_SYNC, 0o644)
		if err == nil {
			_, err = f.Write(guest.Filled(3, 64<<10))
			f.Close()
		}
		ended <- err
	}()
	if out := wantClient(t, 3, "orphaned", "status", dev); !strings.Contains(out, " dead\n") {
		t.Errorf("status: %s", out)
	}
	wantClient(t, 4, "", "wait", dev, "ready", "--timeout", "1")
	select {
	case err := <-ended:
		t.Errorf("a write without a server has ended: %v", err)
	default:
	}
	return m, ended
}

// endAtOnce lets another process take over what was left without a connection.
func endAtOnce(t *guest.T, image string, line []string) {
	const dev = "/dev/nbd0"
	m, written := endTwice(t, line)
	wantClient(t, 0, dev, line...)
	wantClient(t, 0, "", "wait", dev, "ready", "--timeout", "60")
	t.Must(<-written, "write that waited")
	wantClient(t, 0, "state:       attached\n", "status", dev)
	m.Unmount()
	wantClient(t, 0, "", "detach", dev)
	guest.Fsck(t, image)
}

// endLost is endAtOnce of something that ends with the process: the next one refuses to put
// another instance below the mount, and says so, until the device is given up.
func endLost(t *guest.T, image string) {
	const dev = "/dev/nbd0"
	line := []string{"-t", "3", "--serve", image + " | cow"}
	m, written := endTwice(t, line)
	wantClient(t, 0, dev, line...)
	t.Await("status says that it is another instance", func() bool {
		status, out, _ := nbdClient(t, "status", dev)
		return status == 3 && strings.Contains(out, "state:       refused\n") && strings.Contains(out, "another instance")
	})
	wantClient(t, 0, "in use", "detach", "--force", dev)
	if err := <-written; err == nil {
		t.Errorf("a write that was lost counts as done")
	}
	m.Unmount()
	wantClient(t, 0, "", "wait", dev, "gone", "--timeout", "60")
}
