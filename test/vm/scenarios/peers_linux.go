package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// peersHost starts servers by others, outside of the machine, and returns their ports.
func peersHost(t testing.TB) []string {
	dir := harness.Dir(t)
	var ports []string
	start := func(image string, program string, args func(port, image string) []string) {
		port := strconv.Itoa(harness.FreePort(t))
		path := harness.Image(t, dir, image, make([]byte, 64*mib))
		p := harness.Spawn(t, nil, program, args(port, path)...)
		p.AwaitListening("tcp", "127.0.0.1:"+port)
		ports = append(ports, port)
	}
	start("nbdkit.img", "nbdkit", func(port, image string) []string {
		return []string{"-f", "-i", "127.0.0.1", "-p", port, "file", image}
	})
	start("qemu.img", "qemu-nbd", func(port, image string) []string {
		return []string{"-f", "raw", "-t", "-e", "0", "-b", "127.0.0.1", "-p", port, image}
	})
	return append(ports, reference(t, dir))
}

// reference starts the reference's server, which goes to the background, and returns its
// port.
func reference(t testing.TB, dir string) string {
	port, pid := strconv.Itoa(harness.FreePort(t)), filepath.Join(dir, "pid")
	config := harness.Image(t, dir, "config", []byte(fmt.Sprintf(
		"[generic]\nlistenaddr = 127.0.0.1\nport = %s\nallowlist = true\n[disk]\nexportname = %s\nflush = true\nfua = true\ntrim = true\n",
		port, harness.Image(t, dir, "reference.img", make([]byte, 64*mib)))))
	harness.Run(t, "nbd-server", "-C", config, "-p", pid)
	// The process that goes to the background writes it, after the first one has ended.
	var number int
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(pid)
		if err == nil {
			number, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the reference does not say which process it is: %v", err)
		}
	}
	t.Cleanup(func() { syscall.Kill(number, syscall.SIGTERM) })
	return port
}

// peers attaches servers by others by our client: one connection, and several where the
// server can.
func peers(t *guest.T) {
	for i, port := range t.Args {
		uri := "nbd://" + guest.HostAddress + ":" + port + "/"
		if i == 2 {
			uri += "disk"
		}
		k := guest.Keep{URIs: []string{uri}, Args: []string{"-t", "20"}}.Do(t, 0)
		guest.Mkfs(t, k.Path)
		m := guest.Mount(t, k.Path, "")
		tree := guest.WriteTree(t, m.Dir, 3, 60)
		m.Sync()
		guest.DropCaches(t)
		tree.Verify(t, m.Dir)
		m.Unmount()
		guest.Fsck(t, k.Path)
		k.Detach()
	}
}

// overTLS keeps a device whose connections are encrypted, through restarts of the server.
func overTLS(t *guest.T) {
	dir := t.TempDir()
	authority := harness.NewAuthority(t, dir, "authority")
	certificates := authority.Issue(t, "server", "server", "localhost")
	client := authority.Issue(t, "client", "client")
	image := guest.Empty(t, filepath.Join(dir, "disk.img"), guest.LoadSize(loaders))
	k := &kept{image: image}
	k.server = harness.Start(t, harness.Config{
		Generic: "force_tls = true\n" + harness.ServerLines(certificates, authority.CA()),
		Exports: "[disk]\nexportname = " + image + "\n", TCP: true,
	})
	uri := k.server.TCPURI("nbds", "disk")
	wantClient(t, 1, "certificate", "-A", filepath.Join(certificates, "ca-cert.pem"), uri, "/dev/nbd0")
	wantClient(t, 1, "TLS", k.server.TCPURI("nbd", "disk"), "/dev/nbd0")
	k.Keeper = guest.Keep{URIs: []string{uri}, Connections: 2, Args: []string{
		"-t", "3", "-A", authority.CA(),
		"-F", filepath.Join(client, "client-cert.pem"), "-K", filepath.Join(client, "client-key.pem"),
	}}.Do(t, 0)
	k.load = guest.StartLoad(t, k.Path, loaders)
	for range 2 {
		k.load.Progress(20, back)
		k.server.Kill()
		k.server.Restart(t)
	}
	k.end(t)
}

// times measures how long it takes to attach a device, and to be back after a server's
// return: for requests that were sent already, and for new ones.
func times(t *guest.T) {
	const rounds = 3
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib)
	s := serve(t, image)
	for _, timeout := range []string{"0", "5", "30"} {
		var attach, sent, fresh guest.Durations
		for range rounds {
			began := time.Now()
			k := guest.Keep{URIs: []string{s.TCPURI("nbd", "disk")}, Args: []string{"-t", timeout}}.Do(t, 0)
			attach.Add(time.Since(began))
			if len(sent) == 0 || timeout == "5" { // the others take half a minute each
				a, b := comeBack(t, s, k)
				sent.Add(a)
				fresh.Add(b)
			}
			k.Detach()
		}
		t.Logf("request timeout %s s: attach %v; after the server's return: sent before %v, new %v", timeout, attach, sent, fresh)
	}
	s.Stop()
}

// comeBack lets the server die with one request under way, and tells how long after its
// return that one is answered, and one that was not sent before.
func comeBack(t *guest.T, s *harness.Server, k *guest.Keeper) (sent, fresh time.Duration) {
	// The device can be used before the program has done all that it does at first.
	t.Await("the client has attached it", func() bool { return strings.Contains(k.Log(), "attached") })
	f, g := guest.Direct(t, k.Path), guest.Direct(t, k.Path)
	defer f.Close()
	defer g.Close()
	guest.WriteAt(t, f, guest.Filled(1, 4096), 0)
	guest.StopProcess(t, s.PID())
	done := make(chan time.Time, 1)
	go func() {
		f.WriteAt(guest.Filled(2, 4096), 0)
		done <- time.Now()
	}()
	t.Await("the request is under way", func() bool {
		_, writes := guest.InFlight(t, k.Name)
		return writes == 1
	})
	s.Kill()
	s.Restart(t)
	began := time.Now()
	guest.WriteAt(t, g, guest.Filled(3, 4096), 8192)
	fresh = time.Since(began)
	return (<-done).Sub(began), fresh
}
