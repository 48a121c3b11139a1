package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// clientOldstyle attaches as the first documentation has it, to a server that speaks as
// they did then, and lets that restart.
func clientOldstyle(t *guest.T) {
	k := &kept{image: guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), guest.LoadSize(loaders))}
	port := strconv.Itoa(harness.FreePort(t))
	k.server = harness.Start(t, harness.Config{Generic: "oldstyle = true", Exports: "[disk]\nexportname = " + k.image + "\nlistenaddr = 127.0.0.1\nport = " + port + "\n"})
	k.server.AwaitListening("tcp", "127.0.0.1:"+port)
	k.Keeper = guest.Keep{URIs: []string{"127.0.0.1", port}, Args: []string{"-t", "3"}}.Do(t, 0)
	k.load = guest.StartLoad(t, k.Path, loaders)
	for range 3 {
		k.load.Progress(20, back)
		k.server.Kill()
		k.server.Restart(t)
	}
	k.end(t)
}

// clientVSock keeps a device whose server is reached by vsock, which the kernel does not
// take.
func clientVSock(t *guest.T) {
	dir := t.TempDir()
	k := &kept{image: guest.Empty(t, filepath.Join(dir, "disk.img"), guest.LoadSize(loaders))}
	k.server = harness.Start(t, harness.Config{Generic: "listen = vsock:10811", Exports: "[disk]\nexportname = " + k.image + "\n"})
	k.Keeper = guest.Keep{URIs: []string{"nbd+vsock://1:10811/disk"}}.Do(t, 0)
	k.load = guest.StartLoad(t, k.Path, loaders)
	for range 2 {
		k.load.Progress(20, back)
		k.server.Kill()
		k.server.Restart(t)
	}
	k.end(t)
}

// otherNamespace mounts a device, and then a partition of one, where nobody else sees it.
// It must not be detached all the same, but by force.
func otherNamespace(t *guest.T) {
	t.Cleanup(func() { detachAll(t) })
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 64*mib)
	f := guest.Open(t, image, os.O_RDWR)
	_, err := f.WriteAt(partitionTable(2048, 64*mib/512-2048), 0)
	t.Must(err, "partition table")
	f.Close()
	s := serve(t, image)
	for _, part := range []string{"p1", ""} {
		dev := strings.TrimSpace(wantClient(t, 0, "/dev/nbd", s.URI("disk")))
		t.Await("the partition", func() bool { _, err := os.Stat(dev + "p1"); return err == nil })
		harness.Run(t, "mkfs.ext4", "-q", "-F", dev+part)
		unmount := mountElsewhere(t, dev+part)
		wantClient(t, 5, "in another mount namespace", "detach", dev)
		wantClient(t, 0, "state:       attached\n", "status", dev)
		unmount()
		wantClient(t, 0, "", "detach", dev)
	}
	dev := strings.TrimSpace(wantClient(t, 0, "/dev/nbd", s.URI("disk")))
	unmount := mountElsewhere(t, dev)
	wantClient(t, 0, "", "detach", "--force", dev)
	unmount()
	wantClient(t, 0, "", "wait", dev, "gone", "--timeout", "60")
	s.Stop()
}

// mountElsewhere mounts a device in a mount namespace of its own.
func mountElsewhere(t *guest.T, dev string) (unmount func()) {
	mounted, release, over := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		runtime.LockOSThread() // for ever: the thread ends with this goroutine, and with it the namespace
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount(dev, "/mnt", "ext4", 0, "")
		}
		mounted <- err
		<-release
		unix.Unmount("/mnt", 0)
	}()
	t.Must(<-mounted, "mount "+dev+" in another namespace")
	done := false
	unmount = func() {
		if !done {
			done = true
			close(release)
			<-over
		}
	}
	t.Cleanup(unmount)
	return unmount
}

// shortHost starts a server, outside of the machine, that answers long requests with errors.
func shortHost(t testing.TB) []string {
	port := strconv.Itoa(harness.FreePort(t))
	p := harness.Spawn(t, nil, "nbdkit", "-f", "-i", "127.0.0.1", "-p", port, "--filter=blocksize-policy", "memory", "64M",
		"blocksize-maximum=32K", "blocksize-preferred=4096", "blocksize-minimum=1", "blocksize-error-policy=error")
	p.AwaitListening("tcp", "127.0.0.1:"+port)
	return []string{port}
}

// shortRequests attaches a server that takes fewer bytes at a time than the kernel asks for
// by itself. Afterwards the kernel's limit is what it was.
func shortRequests(t *guest.T) {
	uri := fmt.Sprintf("nbd://%s:%s/", guest.HostAddress, t.Args[0])
	before := guest.Attr(t, "nbd0", "queue/max_sectors_kb")
	t.Logf("requests of %s KiB before", before)
	for _, args := range [][]string{{}, {"--no-supervise"}} {
		harness.Run(t, guest.ClientPath, append(args, uri, "/dev/nbd0")...)
		f := guest.Direct(t, "/dev/nbd0")
		if got := guest.Attr(t, "nbd0", "queue/max_sectors_kb"); got != "32" {
			t.Errorf("%q: requests of up to %s KiB, and the server takes 32", args, got)
		}
		data := guest.Filled(1, 4*mib)
		guest.WriteAt(t, f, data, 1*mib)
		guest.ReadBack(t, f, data, 1*mib)
		f.Close()
		wantClient(t, 0, "", "detach", "nbd0")
		if got := guest.Attr(t, "nbd0", "queue/max_sectors_kb"); len(args) == 0 && got != before {
			t.Errorf("requests of %s KiB when it was detached, %s before", got, before)
		}
	}
}
