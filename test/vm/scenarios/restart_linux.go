package scenarios

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// back is how long a scenario waits for I/O to go on after something broke. It ends what
// is stuck; nothing is measured by it.
const back = 2 * time.Minute

// loaders is how many writers work on a device while things break.
const loaders = 3

// kept is a device under load, kept by our client, and the server behind it.
type kept struct {
	*guest.Keeper
	load   *guest.Load
	server *harness.Server
	image  string
}

// keep serves an image over TCP, attaches it, and starts a load. The request timeout is
// given in seconds.
func keep(t *guest.T, connections, timeout int, args ...string) *kept {
	k := &kept{image: guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), guest.LoadSize(loaders))}
	k.server = serve(t, k.image)
	k.Keeper = guest.Keep{
		URIs: []string{k.server.TCPURI("nbd", "disk")}, Connections: connections,
		Args: append([]string{"-t", strconv.Itoa(timeout)}, args...),
	}.Do(t, 0)
	k.load = guest.StartLoad(t, k.Path, loaders)
	k.load.Progress(20, back)
	return k
}

// end stops the load, and wants everything that was acknowledged to be on the device and,
// after it was detached, in the image.
func (k *kept) end(t *guest.T) {
	k.load.Progress(20, back)
	k.load.Verify(k.Path)
	k.Detach()
	k.load.Verify(k.image)
	k.server.Stop()
}

// restarts kills and stops the server under load, again and again.
func restarts(t *guest.T) {
	for _, connections := range []int{1, 4} {
		restartsOf(t, connections, 5)
	}
}

// manyRestarts is a longer run, to be asked for by its name.
func manyRestarts(t *guest.T) {
	for _, connections := range []int{1, 4} {
		restartsOf(t, connections, 50)
	}
}

func restartsOf(t *guest.T, connections, rounds int) {
	k := keep(t, connections, 3)
	for i := range rounds {
		if i%2 == 0 {
			k.server.Kill()
		} else {
			k.server.Stop()
		}
		k.server.Restart(t)
		k.load.Progress(20, back)
	}
	k.end(t)
}

// frozen stops the server in its tracks for longer than requests may take, and lets it go
// on: what it had begun meets what was sent again.
func frozen(t *guest.T) {
	for _, connections := range []int{1, 4} {
		k := keep(t, connections, 2)
		k.server.Signal(syscall.SIGSTOP)
		t.Await("the kernel gives a connection up", func() bool { return k.deaths() > 0 })
		k.server.Signal(syscall.SIGCONT)
		k.end(t)
	}
}

// deaths counts the connections that the client has seen die.
func (k *kept) deaths() int { return strings.Count(k.Log(), "a connection has died") }

// stuckDisk lets the server's disk hang for longer than requests may take. Then there are
// two copies of a write in the server, and newer writes behind them.
func stuckDisk(t *guest.T) {
	for _, connections := range []int{1, 4} {
		size := guest.LoadSize(loaders)
		loop := guest.Loop(t, guest.Empty(t, filepath.Join(t.TempDir(), "back.img"), size), 512)
		name := "disk" + strconv.Itoa(connections)
		disk := guest.Mapper(t, name, "0 "+strconv.FormatInt(size/512, 10)+" linear "+loop+" 0")
		k := &kept{image: loop}
		k.server = serve(t, disk, "sync = true")
		k.Keeper = guest.Keep{URIs: []string{k.server.TCPURI("nbd", "disk")}, Connections: connections, Args: []string{"-t", "2"}}.Do(t, 0)
		k.load = guest.StartLoad(t, k.Path, loaders)
		k.load.Progress(20, back)
		for range 2 {
			before := k.deaths()
			guest.Suspend(t, name)
			t.Await("the kernel gives a connection up", func() bool { return k.deaths() > before })
			guest.Resume(t, name)
			k.load.Progress(20, back)
		}
		k.end(t)
	}
}

// dropped loses every packet between the two for a while. Neither end is told.
func dropped(t *guest.T) {
	k := keep(t, 2, 5)
	guest.LosePackets(t, "lo", 30*time.Second)
	k.end(t)
}

// moved lets another server, elsewhere, take over the image, and give it back.
func moved(t *guest.T) {
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), guest.LoadSize(loaders))
	elsewhere := harness.Dir(t)
	k := &kept{image: image, server: serve(t, image)}
	k.Keeper = guest.Keep{
		URIs: []string{k.server.TCPURI("nbd", "disk"), harness.UnixURI(filepath.Join(elsewhere, "sock"), "disk")},
		Args: []string{"-t", "3"},
	}.Do(t, 0)
	k.load = guest.StartLoad(t, k.Path, loaders)
	k.load.Progress(20, back)
	k.server.Kill()
	other := harness.StartIn(t, elsewhere, harness.Config{Exports: "[disk]\nexportname = " + image + "\n"})
	k.load.Progress(20, back)
	other.Stop()
	k.server.Restart(t)
	k.end(t)
}

// crashedClient kills the process that keeps the device. The device lives on without it;
// the next one takes it over, and makes connections anew when the server dies.
func crashedClient(t *guest.T) {
	for _, connections := range []int{1, 4} {
		k := keep(t, connections, 3)
		k.Process.Kill()
		k.load.Progress(20, back)
		k.Process = harness.Spawn(t, nil, guest.ClientPath, "supervisor", "-n")
		t.Await("the next process keeps the device", func() bool {
			_, out, _ := nbdClient(t, "list", "--json")
			return strings.Contains(out, `"kept": true`)
		})
		for range 2 {
			k.server.Kill()
			k.server.Restart(t)
			k.load.Progress(20, back)
		}
		k.load.Verify(k.Path)
		wantClient(t, 0, "", "detach", k.Path)
		k.Gone()
		k.Process.Stop()
		k.load.Verify(k.image)
		k.server.Stop()
	}
}

// badSectorKept reads a sector that cannot be read, on a device that is kept: that is an
// error of the disk, and no reason to connect anew.
func badSectorKept(t *guest.T) {
	data := harness.Random(6, 32*mib)
	s := serve(t, badDisk(t, data))
	k := guest.Keep{URIs: []string{s.TCPURI("nbd", "disk")}, Args: []string{"-t", "10"}}.Do(t, 0)
	f := guest.Direct(t, k.Path)
	for range 3 {
		if _, err := f.ReadAt(guest.Buffer(4096), 8*mib); !isEIO(err) {
			t.Errorf("read of the bad sector: %v, want EIO", err)
		}
		guest.ReadBack(t, f, data[16*mib:][:1*mib], 16*mib)
	}
	f.Close()
	k.Detach()
	if strings.Contains(k.Log(), "died") {
		t.Errorf("a bad sector cost a connection:\n%s", k.Log())
	}
	s.Stop()
}

// grown lets the file under the server grow under a mounted file system, which grows too:
// nothing is started anew, and nothing unmounted.
func grown(t *guest.T) {
	growing(t, func(k *guest.Keeper) {
		wantClient(t, 0, strconv.Itoa(96*mib), "resize", k.Path)
	})
}

// grownAlone does the same, and nobody tells the client: it asks once in a minute.
func grownAlone(t *guest.T) {
	growing(t, func(k *guest.Keeper) {
		t.AwaitFor(back, "the device grows by itself", func() bool { return guest.Size(t, k.Path) == 96*mib })
	})
}

// growing makes an image twice as long, and calls resize to have the device grow.
func growing(t *guest.T, resize func(*guest.Keeper)) {
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 48*mib)
	s := serve(t, image)
	k := guest.Keep{URIs: []string{s.TCPURI("nbd", "disk")}, Connections: 2, Args: []string{"-t", "3"}}.Do(t, 0)
	guest.Mkfs(t, k.Path)
	m := guest.Mount(t, k.Path, "")
	tree := guest.WriteTree(t, m.Dir, 1, 60)
	m.Sync()
	before := m.Blocks()
	t.Must(os.Truncate(image, 96*mib), "let the image grow")
	resize(k)
	if n := guest.Size(t, k.Path); n != 96*mib {
		t.Errorf("the image has %d bytes, the device %d", 96*mib, n)
	}
	harness.Run(t, "resize2fs", k.Path)
	if now := m.Blocks(); now < before*3/2 {
		t.Errorf("the file system had %d blocks, and has %d", before, now)
	}
	more := guest.WriteTree(t, filepath.Join(m.Dir, "more"), 500, 200)
	m.Sync()
	guest.DropCaches(t)
	tree.Verify(t, m.Dir)
	more.Verify(t, filepath.Join(m.Dir, "more"))
	m.Unmount()
	guest.Fsck(t, k.Path)
	k.Detach()
	s.Stop()
}
