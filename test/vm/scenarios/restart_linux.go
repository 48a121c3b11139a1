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
const loaders = Processors

// kept is a device under load, kept by our client, and the server behind it.
type kept struct {
	*guest.Keeper
	load   *guest.Load
	server *harness.Server
	image  string
	// connections, each of which must have its share of the load in the end; 0 if the
	// server cannot be asked.
	connections int
}

// keep serves an image over TCP, attaches it, and starts a load. The request timeout is
// given in seconds.
func keep(t *guest.T, connections, timeout int) *kept { return keepAt(t, 0, connections, timeout) }

// keepAt is keep for the kernel device of that number.
func keepAt(t *guest.T, number, connections, timeout int) *kept {
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), guest.LoadSize(loaders))
	s := serveAsked(t, image)
	return keepOf(t, number, connections, timeout, s, image, s.TCPURI("nbd", "disk"))
}

// keepOf attaches what a server has, which was made by serveAsked, and starts a load.
func keepOf(t *guest.T, number, connections, timeout int, s *harness.Server, image string, uris ...string) *kept {
	k := &kept{server: s, image: image, connections: connections}
	k.Keeper = guest.Keep{URIs: uris, Connections: connections, Args: []string{"-t", strconv.Itoa(timeout)}}.Do(t, number)
	k.load = guest.StartLoad(t, k.Path, loaders)
	k.load.Progress(20, back)
	guest.AwaitServing(t, s, connections)
	awaitAttached(t, k.Keeper)
	return k
}

// serveAsked is serve with a server that says what its connections do.
func serveAsked(t *guest.T, exportname string, lines ...string) *harness.Server {
	dir := harness.Dir(t)
	return harness.StartIn(t, dir, harness.Config{
		Generic: guest.Control(dir), Exports: strings.Join(append([]string{"[disk]", "exportname = " + exportname}, lines...), "\n") + "\n", TCP: true,
	})
}

// end stops the load, and wants everything that was acknowledged to be on the device and,
// after it was detached, in the image.
func (k *kept) end(t *guest.T) {
	k.load.Progress(20, back)
	if k.connections > 0 {
		guest.AwaitServing(t, k.server, k.connections)
	}
	k.load.Verify(k.Path)
	k.Detach()
	k.load.Verify(k.image)
	k.server.Stop()
}

// restarts kills and stops the server under load, ten times.
func restarts(t *guest.T) {
	for _, connections := range []int{1, 4} {
		restartsOf(t, connections, 10)
	}
}

// manyRestarts is a longer run, to be asked for by its name.
func manyRestarts(t *guest.T) {
	for _, connections := range []int{1, 4} {
		restartsOf(t, connections, 50)
	}
}

func restartsOf(t *guest.T, connections, rounds int) {
	k := keep(t, connections, 2)
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
		s := serveAsked(t, disk, "sync = true")
		k := keepOf(t, 0, connections, 2, s, loop, s.TCPURI("nbd", "disk"))
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
	one, four := keepAt(t, 0, 1, 5), keepAt(t, 1, 4, 5)
	const lost = 30 * time.Second
	guest.LosePackets(t, "lo", lost)
	for _, k := range []*kept{one, four} {
		k.end(t)
		if k.deaths() == 0 {
			t.Errorf("no connection has died by the loss:\n%s", k.Log())
		}
		if worst := k.load.Worst(); worst < lost-time.Second {
			t.Errorf("all went on within %v, while packets were lost for %v", worst, lost)
		}
	}
}

// moved lets another server, elsewhere, take over the image, and give it back.
func moved(t *guest.T) {
	movedTo(t, 1, "", "")
	port := strconv.Itoa(harness.FreePort(t))
	movedTo(t, 4, "listen = [::1]:"+port+"\n", "nbd://[::1]:"+port+"/disk")
}

// movedTo does it with a server that has a further line of configuration, at a URI; if that
// is empty, at its unix socket.
func movedTo(t *guest.T, connections int, line, uri string) {
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), guest.LoadSize(loaders))
	elsewhere := harness.Dir(t)
	if uri == "" {
		uri = harness.UnixURI(filepath.Join(elsewhere, "sock"), "disk")
	}
	s := serveAsked(t, image)
	k := keepOf(t, 0, connections, 3, s, image, s.TCPURI("nbd", "disk"), uri)
	k.server.Kill()
	other := harness.StartIn(t, elsewhere, harness.Config{
		Generic: guest.Control(elsewhere) + line, Exports: "[disk]\nexportname = " + image + "\n",
	})
	k.load.Progress(20, back)
	guest.AwaitServing(t, other, connections)
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
		k.takeOver(t)
	}
	// With TLS the connections end with the process. What was begun waits for the next one.
	k := keepSecret(t)
	k.Process.Kill()
	k.takeOver(t)
}

// takeOver has another process keep the device, and ends as end does.
func (k *kept) takeOver(t *guest.T) {
	k.Process = harness.Spawn(t, nil, guest.ClientPath, "supervisor", "-n")
	t.Await("the next process keeps the device", func() bool {
		_, out, _ := nbdClient(t, "list", "--json")
		return strings.Contains(out, `"kept": true`)
	})
	for range 2 {
		k.load.Progress(20, back)
		k.server.Kill()
		k.server.Restart(t)
	}
	k.load.Progress(20, back)
	guest.AwaitServing(t, k.server, k.connections)
	k.load.Verify(k.Path)
	wantClient(t, 0, "", "detach", k.Path)
	k.Gone()
	k.Process.Stop()
	k.load.Verify(k.image)
	k.server.Stop()
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
