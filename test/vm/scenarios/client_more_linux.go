package scenarios

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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
	k.Keeper = guest.Keep{URIs: []string{"nbd+vsock://1:10811/disk"}, Args: []string{"-t", "3"}}.Do(t, 0)
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

// clientRounds attaches a disk with a partition, and detaches it, again and again, in every
// way. Each time the same device is free, its partition appears, and is gone when
// detach has ended; nothing is left over: no process, no connection, no file.
func clientRounds(t *guest.T) { roundsOf(t, 16) }

// manyRounds is a longer run, to be asked for by its name.
func manyRounds(t *guest.T) { roundsOf(t, 100) }

func roundsOf(t *guest.T, rounds int) {
	t.Cleanup(func() { detachAll(t) })
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib)
	f := guest.Open(t, image, os.O_RDWR)
	_, err := f.WriteAt(partitionTable(2048, 4096), 0)
	t.Must(err, "partition table")
	f.Close()
	s := serve(t, image)
	certificates := harness.NewAuthority(t, t.TempDir(), "authority").Issue(t, "server", "server", "localhost")
	secret := harness.Start(t, harness.Config{
		Generic: "force_tls = true\n" + harness.ServerLines(certificates, ""), Exports: "[disk]\nexportname = " + image + "\n", TCP: true,
	})
	ways := [][]string{
		{s.URI("disk")}, {"--serve", image}, {s.TCPURI("nbd", "disk"), "-C", "2"}, {s.URI("disk"), "--no-supervise"},
		{s.URI("disk"), "-L"}, {secret.TCPURI("nbds", "disk"), "-A", filepath.Join(certificates, "ca-cert.pem")},
	}
	before := runFiles(t) // processes that were killed have left some
	for round := range rounds {
		args := ways[round%len(ways)]
		dev := strings.TrimSpace(wantClient(t, 0, "/dev/nbd0\n", args...))
		t.Await("the partition", func() bool { _, err := os.Stat(dev + "p1"); return err == nil })
		wantClient(t, 0, "", "detach", dev)
		for _, left := range []string{dev + "p1", "/sys/block/nbd0/pid", "/run/nbd/nbd0.json"} {
			if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("round %d, %q: %s is there after detach: %v", round, args, left, err)
			}
		}
		if t.Failed() {
			break
		}
	}
	t.Await("the processes have ended, and taken their files with them", func() bool {
		return !slices.ContainsFunc(runFiles(t), func(name string) bool { return !slices.Contains(before, name) })
	})
	guest.AwaitConnections(t, secret, 0)
	secret.Stop()
	guest.AwaitConnections(t, s, 0)
	s.Stop()
}

// runFiles returns the names of what processes of nbd-client have in /run.
func runFiles(t *guest.T) (names []string) {
	list, err := os.ReadDir("/run/nbd")
	if !errors.Is(err, os.ErrNotExist) {
		t.Must(err, "files in /run")
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// zeroes clears stretches of a kept device, and discards others. Where the kernel can tell
// the server to clear, no zeroes are sent, and space is given back if that is what was
// asked for.
func zeroes(t *guest.T) {
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 32*mib)
	s := serve(t, image)
	k := guest.Keep{URIs: []string{s.URI("disk")}}.Do(t, 0)
	able := k.Attr("queue/write_zeroes_max_bytes") != "0"
	t.Logf("the kernel has the command: %t", able)
	data := guest.Filled(1, 24*mib)
	f := guest.Direct(t, k.Path)
	defer f.Close()
	guest.WriteAt(t, f, data, 0)
	t.Must(f.Sync(), "flush")
	full := guest.Allocated(t, image)

	t.Must(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, 1*mib, 6*mib), "clear")
	clear(data[1*mib:][:6*mib])
	if now := guest.Allocated(t, image); now != full {
		t.Errorf("%d bytes were allocated, and %d are when some were cleared in place", full, now)
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 12*mib, 8*mib)
	switch now := guest.Allocated(t, image); {
	case able && err != nil:
		t.Errorf("make a hole: %v", err)
	case able && now > full-8*mib:
		t.Errorf("a hole of 8 MiB was made, and the image went from %d to %d bytes", full, now)
	case !able && !errors.Is(err, unix.EOPNOTSUPP):
		t.Errorf("make a hole, which this kernel cannot: %v", err)
	}
	if able {
		clear(data[12*mib:][:8*mib])
	}
	full = guest.Allocated(t, image)
	harness.Run(t, "blkdiscard", "-o", strconv.Itoa(8*mib), "-l", strconv.Itoa(3*mib), k.Path)
	clear(data[8*mib:][:3*mib])
	if now := guest.Allocated(t, image); now > full-3*mib {
		t.Errorf("3 MiB were discarded, and the image went from %d to %d bytes", full, now)
	}
	guest.ReadBack(t, f, data, 0)
	f.Close()
	guest.SameContents(t, k.Path, image)
	k.Detach()
	s.Stop()
}

// clientErrors does what cannot be, and wants to be told what to do.
func clientErrors(t *guest.T) {
	t.Cleanup(func() { detachAll(t) })
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib)
	exports := "[disk]\nexportname = " + image + "\n"
	s := harness.Start(t, harness.Config{Exports: exports, TCP: true})
	certificates := harness.NewAuthority(t, t.TempDir(), "authority").Issue(t, "server", "server", "localhost")
	secret := harness.Start(t, harness.Config{Generic: "force_tls = true\n" + harness.ServerLines(certificates, ""), Exports: exports, TCP: true})
	wantClient(t, 1, `the server has "disk"`, s.URI("dsk"))
	wantClient(t, 1, "the server needs TLS: add -x", secret.URI("disk"))
	wantClient(t, 1, "name the authority by -A", secret.TCPURI("nbds", "disk"))
	wantClient(t, 1, "the server offers no TLS", s.TCPURI("nbds", "disk"))
	secret.Stop()
	wantClient(t, 1, "nobody listens there", secret.TCPURI("nbds", "disk"))

	nobody := exec.Command(guest.ClientPath, s.TCPURI("nbd", "disk"))
	nobody.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := nobody.CombinedOutput(); err == nil || !strings.Contains(string(out), "start it as root") {
		t.Errorf("without rights: %v, %s", err, out)
	}

	dev := strings.TrimSpace(wantClient(t, 0, "/dev/nbd", s.TCPURI("nbd", "disk")))
	wantClient(t, 1, dev+" has "+s.TCPURI("nbd", "disk")+" attached, kept by process", s.URI("disk"), dev, "-i", "other")
	harness.Run(t, "mkfs.ext4", "-q", dev)
	t.Must(unix.Mount(dev, "/mnt", "ext4", 0, ""), "mount")
	wantClient(t, 5, "is in use: mounted on /mnt", "detach", dev)
	// By force it always ends. What is mounted holds the device all the same.
	for range 2 {
		wantClient(t, 0, "will be gone when they let go of it", "detach", "--force", dev)
	}
	t.Must(unix.Unmount("/mnt", 0), "unmount")
	wantClient(t, 0, "", "wait", dev, "gone", "--timeout", "60")
	guest.AwaitConnections(t, s, 0)
	noModule(t, s.URI("disk"))
	s.Stop()
}

// noModule takes the module away, and the way to load it. When that is back, nbd-client
// loads the module by itself.
func noModule(t *guest.T, uri string) {
	const modprobe, away = "/sbin/modprobe", "/sbin/modprobe.away"
	t.Must(os.Rename(modprobe, away), "move modprobe away")
	back := sync.OnceFunc(func() { t.Must(os.Rename(away, modprobe), "move modprobe back") })
	t.Cleanup(back)
	t.Must(unix.DeleteModule("nbd", unix.O_NONBLOCK), "remove the module")
	wantClient(t, 1, "load it: modprobe nbd", uri)
	wantClient(t, 0, "the module nbd is not loaded", "list")
	wantClient(t, 1, "", "-c", "/dev/nbd0")
	back()
	dev := strings.TrimSpace(wantClient(t, 0, "/dev/nbd0\n", uri))
	wantClient(t, 0, "", "detach", dev)
}
