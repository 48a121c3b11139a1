package scenarios

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// peersHost starts servers by others, outside of the machine: each of the three without
// TLS, and each with it. It returns their ports, and the files of peersFiles.
func peersHost(t testing.TB) []string {
	dir := harness.Dir(t)
	authority := harness.NewAuthority(t, dir, "authority")
	certificates := authority.Issue(t, "server", "server", guest.HostAddress)
	var ports []string
	start := func(image string, program string, args ...string) {
		port := strconv.Itoa(harness.FreePort(t))
		path := harness.Image(t, dir, image, make([]byte, 64*mib))
		for i, a := range args {
			args[i] = strings.NewReplacer("PORT", port, "IMAGE", path).Replace(a)
		}
		p := harness.Spawn(t, nil, program, args...)
		p.AwaitListening("tcp", "127.0.0.1:"+port)
		ports = append(ports, port)
	}
	start("nbdkit.img", "nbdkit", "-f", "-i", "127.0.0.1", "-p", "PORT", "file", "IMAGE")
	start("qemu.img", "qemu-nbd", "-f", "raw", "-t", "-e", "0", "-b", "127.0.0.1", "-p", "PORT", "IMAGE")
	ports = append(ports, reference(t, dir, "plain", ""))
	start("nbdkit-tls.img", "nbdkit", "-f", "-i", "127.0.0.1", "-p", "PORT", "--tls=require", "--tls-certificates="+certificates, "file", "IMAGE")
	start("qemu-tls.img", "qemu-nbd", "-f", "raw", "-t", "-e", "0", "-b", "127.0.0.1", "-p", "PORT",
		"--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=off,dir="+certificates, "--tls-creds", "tls0", "IMAGE")
	ports = append(ports, reference(t, dir, "tls", "force_tls = true\n"+harness.ServerLines(certificates, authority.CA())))
	mine := authority.Issue(t, "client", "client")
	for _, name := range peersFiles {
		text, err := os.ReadFile(filepath.Join(mine, name))
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, base64.StdEncoding.EncodeToString(text))
	}
	return ports
}

// peersFiles are what a client needs to be let in by the servers with TLS.
var peersFiles = []string{"ca-cert.pem", "client-cert.pem", "client-key.pem"}

// reference starts the reference's server, which goes to the background, with further
// lines for its section "generic", and returns its port.
func reference(t testing.TB, dir, name, lines string) string {
	port, pid := strconv.Itoa(harness.FreePort(t)), filepath.Join(dir, name+".pid")
	config := harness.Image(t, dir, name+".config", []byte(fmt.Sprintf(
		"[generic]\nlistenaddr = 127.0.0.1\nport = %s\nallowlist = true\n%s[disk]\nexportname = %s\nflush = true\nfua = true\ntrim = true\n",
		port, lines, harness.Image(t, dir, name+".img", make([]byte, 64*mib)))))
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

// peers attaches servers by others by our client: with one connection, with four, and over
// TLS.
func peers(t *guest.T) {
	names := []string{"nbdkit", "qemu-nbd", "the reference"}
	dir := t.TempDir()
	for i, name := range peersFiles {
		text, err := base64.StdEncoding.DecodeString(t.Args[2*len(names)+i])
		t.Must(err, name)
		t.Must(os.WriteFile(filepath.Join(dir, name), text, 0o600), name)
	}
	keys := []string{"-A", filepath.Join(dir, peersFiles[0]), "-F", filepath.Join(dir, peersFiles[1]), "-K", filepath.Join(dir, peersFiles[2])}
	for i, name := range names {
		export := ""
		if name == "the reference" {
			export = "disk"
		}
		plain := fmt.Sprintf("nbd://%s:%s/%s", guest.HostAddress, t.Args[i], export)
		secret := fmt.Sprintf("nbds://%s:%s/%s", guest.HostAddress, t.Args[len(names)+i], export)
		usePeer(t, name, guest.Keep{URIs: []string{plain}})
		usePeer(t, name+", four connections", guest.Keep{URIs: []string{plain}, Connections: 4})
		usePeer(t, name+", TLS", guest.Keep{URIs: []string{secret}, Args: slices.Clip(keys)})
	}
}

// usePeer makes a file system on such a device, and uses it.
func usePeer(t *guest.T, name string, a guest.Keep) {
	a.Args = append(a.Args, "-t", "20")
	k := a.Do(t, 0)
	want := fmt.Sprintf(" connections=%d ", max(a.Connections, 1))
	t.Await(name+":"+want, func() bool { return strings.Contains(k.Log(), want) })
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

// overTLS keeps a device whose connections are encrypted, through restarts of the server.
func overTLS(t *guest.T) {
	k := keepSecret(t)
	for range 2 {
		k.load.Progress(20, back)
		k.server.Kill()
		k.server.Restart(t)
	}
	k.end(t)
}

// keepSecret is keep with two connections over TLS. Before, the reference's client attaches
// the device, and ours is refused that does not trust the server.
func keepSecret(t *guest.T) *kept {
	dir := t.TempDir()
	authority := harness.NewAuthority(t, dir, "authority")
	certificates := authority.Issue(t, "server", "server", "localhost")
	client := authority.Issue(t, "client", "client")
	k := &kept{image: guest.Empty(t, filepath.Join(dir, "disk.img"), guest.LoadSize(loaders)), connections: 2}
	own := harness.Dir(t)
	k.server = harness.StartIn(t, own, harness.Config{
		Generic: guest.Control(own) + "force_tls = true\n" + harness.ServerLines(certificates, authority.CA()),
		Exports: "[disk]\nexportname = " + k.image + "\n", TCP: true,
	})
	keys := []string{"-cacertfile", authority.CA(), "-certfile", filepath.Join(client, "client-cert.pem"), "-keyfile", filepath.Join(client, "client-key.pem")}
	other := guest.Attach{Server: k.server, TCP: true, Args: append([]string{"-enable-tls", "-tlshostname", "localhost"}, keys...)}.Do(t, 0)
	useAttached(t, other, k.image, 1)
	other.Detach()
	const dev = "/dev/nbd0"
	uri := k.server.TCPURI("nbds", "disk")
	wantClient(t, 1, "certificate", "-A", filepath.Join(certificates, "ca-cert.pem"), uri, dev)
	wantClient(t, 1, "TLS", k.server.TCPURI("nbd", "disk"), dev)
	k.Keeper = guest.Keep{URIs: []string{uri}, Connections: k.connections, Args: append([]string{"-t", "3"}, keys...)}.Do(t, 0)
	k.load = guest.StartLoad(t, k.Path, loaders)
	k.load.Progress(20, back)
	guest.AwaitServing(t, k.server, k.connections)
	awaitAttached(t, k.Keeper)
	return k
}

// times measures how long it takes to attach a device, and to be back after a server's
// return: for requests that were sent already, and for new ones.
func times(t *guest.T) { timesOf(t, 1) }

// timesOfFour does it with four connections.
func timesOfFour(t *guest.T) { timesOf(t, 4) }

func timesOf(t *guest.T, connections int) {
	const samples = 3
	for _, timeout := range []string{"0", "5", "30"} {
		var attach, sent, fresh guest.Durations
		var waiting []func() time.Duration
		// Those that were sent wait for the kernel's timer, half a minute, side by side.
		for number := range samples {
			s := serve(t, guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 16*mib))
			began := time.Now()
			k := guest.Keep{URIs: []string{s.TCPURI("nbd", "disk")}, Connections: connections, Args: []string{"-t", timeout}}.Do(t, number)
			attach.Add(time.Since(began))
			soon, late := comeBack(t, s, k)
			fresh.Add(soon)
			waiting = append(waiting, func() time.Duration {
				defer s.Stop()
				defer k.Detach()
				return late()
			})
		}
		for _, late := range waiting {
			sent.Add(late())
		}
		t.Logf(guest.Measured+"request timeout %s s, connections: %d: attach %v; after the server's return: sent before %v, new %v",
			timeout, connections, attach, sent, fresh)
	}
}

// awaitAttached waits until the client has done all that it does at first. The device can be
// used before.
func awaitAttached(t *guest.T, k *guest.Keeper) {
	t.Await("the client has attached it", func() bool { return strings.Contains(k.Log(), "attached") })
}

// comeBack lets the server die with one request under way, and tells how long after its
// return a request is answered that was not sent before. What it returns waits for the
// other one, and tells the same of it.
func comeBack(t *guest.T, s *harness.Server, k *guest.Keeper) (fresh time.Duration, sent func() time.Duration) {
	awaitAttached(t, k)
	f, g := guest.Direct(t, k.Path), guest.Direct(t, k.Path)
	defer g.Close()
	guest.WriteAt(t, f, guest.Filled(1, 4096), 0)
	guest.StopProcess(t, s.PID())
	type answer struct {
		at  time.Time
		err error
	}
	done := make(chan answer, 1)
	go func() {
		_, err := f.WriteAt(guest.Filled(2, 4096), 0)
		done <- answer{time.Now(), err}
	}()
	t.Await("the request is under way", func() bool {
		_, writes := guest.InFlight(t, k.Name)
		return writes == 1
	})
	s.Kill()
	s.Restart(t)
	began := time.Now()
	guest.WriteAt(t, g, guest.Filled(3, 4096), 8192)
	return time.Since(began), func() time.Duration {
		a := <-done
		t.Must(a.err, "the request that was sent before")
		guest.ReadBack(t, f, guest.Filled(2, 4096), 0)
		f.Close()
		return a.at.Sub(began)
	}
}
