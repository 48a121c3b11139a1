package scenarios

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// nbdClient runs our nbd-client to its end. It returns its exit status and all that it
// said, with the standard output first.
func nbdClient(t *guest.T, args ...string) (status int, out, errs string) {
	out, errs, err := harness.Command(t, "", guest.ClientPath, args...)
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		status = exit.ExitCode()
	default:
		t.Fatalf("nbd-client %q: %v: %s%s", args, err, out, errs)
	}
	return status, out, errs
}

// wantClient wants nbd-client to end with a status and to print a text.
func wantClient(t *guest.T, status int, text string, args ...string) string {
	got, out, errs := nbdClient(t, args...)
	if got != status || !strings.Contains(out+errs, text) {
		t.Errorf("nbd-client %q: status %d, want %d and %q:\n%s%s", args, got, status, text, out, errs)
	}
	return out
}

// detachAll detaches what the scenario has left attached.
func detachAll(t *guest.T) {
	for i := range 4 {
		nbdClient(t, "detach", "--force", fmt.Sprintf("nbd%d", i))
	}
}

// clientForms attaches in the background by every form of the command line, old and new.
func clientForms(t *guest.T) {
	t.Cleanup(func() { detachAll(t) })
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib)
	s := serve(t, image)
	tab := filepath.Join(t.TempDir(), "nbdtab")
	t.Must(os.WriteFile(tab, []byte("nbd2 "+s.Socket+" disk unix,bs=1024,conns=2,timeout=20\n"), 0o600), "nbdtab")
	port := strconv.Itoa(s.Port)
	six := strconv.Itoa(harness.FreePort(t))
	beside := harness.Start(t, harness.Config{
		Generic: "listen = [::1]:" + six, Exports: "[disk]\nexportname = " + guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib) + "\n",
	})
	beside.AwaitListening("tcp", "[::1]:"+six)
	for i, line := range []string{
		"-N disk 127.0.0.1 " + port + " /dev/nbd0",
		"127.0.0.1 " + port + " /dev/nbd0 -name=disk -persist -timeout 10",
		"--name disk -unix " + s.Socket + " /dev/nbd0 -C 4",
		s.Socket + " nbd0 -u -Ndisk -b 4096 -R",
		"-N disk 127.0.0.1 " + port + " /dev/nb0 -L",
		"--nbdtab " + tab + " nbd2",
		"--nbdtab " + tab + " -b 512 /dev/nbd2",
		s.URI("disk"),
		"nbd://127.0.0.1:" + port + "/disk " + s.URI("disk") + " auto",
		"127.0.0.1:" + port + " -N disk auto -i by-name",
		s.URI("disk") + " nbd3 --no-supervise",
		"-N disk ::1 " + six + " /dev/nbd0",
		"nbd://[::1]:" + six + "/disk auto -C 2",
	} {
		out := wantClient(t, 0, "/dev/nbd", strings.Fields(line)...)
		dev := strings.TrimSpace(out)
		wantClient(t, 0, "", "wait", dev, "ready", "--timeout", "30")
		if strings.Contains(line, "-R") {
			guest.SameContents(t, dev, image)
		} else {
			f := guest.Direct(t, dev)
			data := guest.Filled(uint64(i), 64<<10)
			guest.WriteAt(t, f, data, 4096)
			guest.ReadBack(t, f, data, 4096)
			f.Close()
		}
		pid := strings.TrimSpace(wantClient(t, 0, "", "-c", dev))
		if _, err := os.Stat("/proc/" + pid); err != nil && !strings.Contains(line, "--no-supervise") {
			t.Errorf("%s: -c names the process %q: %v", line, pid, err)
		}
		wantClient(t, 0, "", "-d", dev)
		wantClient(t, 1, "", "-c", dev)
		wantClient(t, 1, "", "status", dev)
	}
	guest.AwaitConnections(t, s, 0)
}

// clientLife is the life of a device: attached twice, listed, in use, detached, and all
// that a script asks meanwhile.
func clientLife(t *guest.T) {
	t.Cleanup(func() { detachAll(t) })
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib)
	s := serve(t, image)
	dev := strings.TrimSpace(wantClient(t, 0, "/dev/nbd", s.URI("disk")))
	wantClient(t, 0, dev+"\n", s.URI("disk"))
	wantClient(t, 0, dev+"\n", s.URI("disk"), dev)
	var list struct {
		Devices []struct {
			Device, State string
			URIs          []string
			Size          int64
			PID           int
		}
	}
	out := wantClient(t, 0, "", "list", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Devices) != 1 {
		t.Fatalf("list --json: %v: %s", err, out)
	}
	d := list.Devices[0]
	if d.Device != dev || d.State != "attached" || d.Size != 16*mib || len(d.URIs) != 1 || !strings.Contains(d.URIs[0], s.Socket) {
		t.Errorf("list --json: %s", out)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", d.PID)); err != nil || cwd != "/" {
		t.Errorf("process %d keeps the folder %q, %v", d.PID, cwd, err)
	}
	wantClient(t, 0, "state:       attached\n", "status", dev)
	wantClient(t, 1, "in use", s.URI("disk"), dev, "-i", "other")

	harness.Run(t, "mkfs.ext4", "-q", dev)
	t.Must(unix.Mount(dev, "/mnt", "ext4", 0, ""), "mount")
	wantClient(t, 5, "/mnt", "detach", dev)
	wantClient(t, 4, "not gone", "wait", dev, "gone", "--timeout", "1")
	t.Must(unix.Unmount("/mnt", 0), "unmount")

	growWithout(t, s, image, dev)

	// The process is replaced, the device stays.
	f := guest.Direct(t, dev)
	wantClient(t, 0, "", "upgrade", dev)
	data := guest.Filled(7, 64<<10)
	guest.WriteAt(t, f, data, 8192)
	guest.ReadBack(t, f, data, 8192)
	f.Close()
	t.Await("the process is back", func() bool {
		_, out, _ := nbdClient(t, "list", "--json")
		return strings.Contains(out, `"kept": true`)
	})
	wantClient(t, 0, "", "detach", dev)
	wantClient(t, 0, "", "wait", dev, "gone", "--timeout", "30")
	guest.AwaitConnections(t, s, 0)
	s.Stop()
}

// growWithout lets the export grow while there is no server, which scripts are told of. The
// device grows when there is one.
func growWithout(t *guest.T, s *harness.Server, image, dev string) {
	t.Must(os.Truncate(image, 24*mib), "grow the image")
	s.Kill()
	t.Await("status says that the device waits for a server", func() bool {
		status, out, _ := nbdClient(t, "status", dev)
		return status == 3 && strings.Contains(out, "state:       reconnecting\n")
	})
	s.Restart(t)
	t.Await("status says that a server is back", func() bool {
		status, _, _ := nbdClient(t, "status", dev)
		return status == 0
	})
	t.Await("the device grows", func() bool {
		status, out, _ := nbdClient(t, "resize", dev)
		return status == 0 && strings.TrimSpace(out) == strconv.Itoa(24*mib)
	})
}

// clientServe attaches a file and a copy-on-write chain without a server.
func clientServe(t *guest.T) {
	t.Cleanup(func() { detachAll(t) })
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib)
	dev := strings.TrimSpace(wantClient(t, 0, "/dev/nbd", "--serve", image))
	harness.Run(t, "mkfs.ext4", "-q", dev)
	t.Must(unix.Mount(dev, "/mnt", "ext4", 0, ""), "mount")
	tree := guest.WriteTree(t, "/mnt", 1, 40)
	t.Must(unix.Unmount("/mnt", 0), "unmount")
	wantClient(t, 0, "", "detach", dev)
	before, err := os.ReadFile(image)
	t.Must(err, "image")

	dev = strings.TrimSpace(wantClient(t, 0, "/dev/nbd", "--serve", image+" | cow", "-C", "2"))
	t.Must(unix.Mount(dev, "/mnt", "ext4", 0, ""), "mount the copy")
	tree.Verify(t, "/mnt")
	guest.WriteTree(t, "/mnt/more", 2, 40)
	t.Must(unix.Unmount("/mnt", 0), "unmount the copy")
	wantClient(t, 0, "", "detach", dev)
	harness.Same(t, image, before)
}

// clientService hands devices to a supervisor, which makes way for a second one, starts
// anew, and is killed.
func clientService(t *guest.T) {
	t.Cleanup(func() { detachAll(t) })
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib)
	s := serve(t, image)
	tab := filepath.Join(t.TempDir(), "nbdtab")
	t.Must(os.WriteFile(tab, []byte("nbd3 "+s.URI("disk")+" auto,identifier=auto\n"), 0o600), "nbdtab")
	start := func() *harness.Process { return harness.Spawn(t, nil, guest.ClientPath, "supervisor", "--nbdtab", tab) }
	service := start()
	wantClient(t, 0, "", "wait", "nbd3", "ready", "--timeout", "60")
	wantClient(t, 0, "/dev/nbd1\n", s.URI("disk"), "nbd1", "-t", "3")
	service = succeeded(t, s, service, start)

	f := guest.Direct(t, "/dev/nbd1")
	defer f.Close()
	data := guest.Filled(1, 64<<10)
	guest.WriteAt(t, f, data, 4096)
	service.Kill()
	wantClient(t, 0, "orphaned", "status", "nbd1")
	guest.ReadBack(t, f, data, 4096) // its connections live on
	service = start()
	awaitKept(t, "nbd1", "nbd3")
	guest.WriteAt(t, f, data, 8192)
	guest.ReadBack(t, f, data, 8192)
	f.Close()
	wantClient(t, 0, "", "detach", "nbd1", "nbd3")
	service.Stop()
}

// succeeded lets a second supervisor take the place of the first one under load, and then
// start anew. The sockets are passed on, no connection is made for that; but when the server
// dies, it is. It returns the second one.
func succeeded(t *guest.T, s *harness.Server, first *harness.Process, start func() *harness.Process) *harness.Process {
	load := guest.StartLoad(t, "/dev/nbd1", loaders)
	load.Progress(20, back)
	next := start()
	if err := first.Wait(); err != nil {
		t.Errorf("the first supervisor ended by: %v", err)
	}
	awaitKept(t, "nbd1", "nbd3")
	load.Progress(20, back)
	wantClient(t, 0, "", "upgrade", "nbd1")
	awaitKept(t, "nbd1", "nbd3")
	load.Progress(20, back)
	wantClient(t, 0, "reconnects:  0\n", "status", "nbd1")
	s.Kill()
	s.Restart(t)
	load.Progress(20, back)
	wantClient(t, 0, "reconnects:  1\n", "status", "nbd1")
	load.Verify("/dev/nbd1")
	return next
}

// awaitKept waits until a process keeps the devices, and they are attached.
func awaitKept(t *guest.T, devices ...string) {
	for _, dev := range devices {
		t.Await(dev+" is kept", func() bool {
			_, out, _ := nbdClient(t, "status", dev)
			return strings.Contains(out, "keeps it") && strings.Contains(out, "state:       attached\n")
		})
	}
}
