package vm

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// rootPatience is how long a whole Debian may take to boot: without KVM, half a minute on
// a machine that has nothing else to do.
const rootPatience = 5 * time.Minute

// station is a Debian without a disk: its root is an export of our server.
type station struct {
	t      *testing.T
	debian *Debian
	kernel *Kernel
	config harness.Config
	server *harness.Server
	image  string // what the server exports as root
	dir    string
	boots  int
}

// TestRootOnNBD boots a Debian whose root file system is on our server, by each of the
// hooks that Debian has a use for, and works in it while the server is restarted. What
// one boot has written, the next one finds.
func TestRootOnNBD(t *testing.T) {
	if !strings.Contains(flag.Lookup("test.run").Value.String(), "RootOnNBD") {
		testgate.Requires(t, testgate.AskedOrMust("vm"))
	}
	testgate.Requires(t, Need("mkfs.ext4", "e2fsck", "chroot", "mknod"), testgate.Root())
	t.Run("initramfs-tools", func(t *testing.T) {
		s := newStation(t, "6.12")
		archive := s.initramfsTools()
		// As dracut's documentation has it, which our hooks take everywhere.
		s.live(archive, fmt.Sprintf("ip=dhcp root=nbd:%s:%d:root:ext4:noatime", guest.HostAddress, s.server.Port), 1)
		// As Debian's has it, through IPv6 if this host has that, by TLS, with two connections.
		host, port := s.alsoIPv6()
		s.again(archive, fmt.Sprintf("nbdroot=[%s]:%d/secret nbdopts=tls,tlshostname=station.example,conns=2 root=/dev/nbd0", host, port), 2)
		s.server.Stop()
	})
	t.Run("dracut", func(t *testing.T) {
		if !asked("dracut") {
			t.Skip("takes three minutes: runs when -run names dracut")
		}
		s := newStation(t, "6.1")
		archive := s.dracut()
		s.live(archive, fmt.Sprintf("ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off root=nbd://%s:%d/root", guest.HostAddress, s.server.Port), 1)
		s.server.Stop()
	})
}

// newStation makes the Debian, and says how to start a server with it.
func newStation(t *testing.T, series string) *station {
	ctx := t.Context()
	s := &station{t: t, dir: t.TempDir()}
	base, err := FetchDebian(ctx)
	s.must(err)
	s.kernel, err = FetchKernel(ctx, series)
	s.must(err)
	s.debian, err = base.Copy(ctx, filepath.Join(s.dir, "debian"))
	s.must(err)
	agent, client := filepath.Join(s.dir, "agent"), filepath.Join(s.dir, "nbd-client")
	s.must(Build(ctx, "nbd.example/nbd/test/vm/init", agent))
	s.must(Build(ctx, "nbd.example/nbd/cmd/nbd-client", client))
	s.must(s.debian.Put(agent, "usr/sbin/vm-agent", 0o755))
	s.must(s.debian.Put(client, "usr/sbin/nbd-client", 0o755))
	s.must(s.debian.Write("etc/systemd/system/vm-agent.service", agentUnit, 0o644))
	s.must(s.debian.Write("etc/systemd/system/default.target", agentTarget, 0o644))
	scripts, err := filepath.Abs("../../initramfs")
	s.must(err)
	s.must(s.debian.Put(filepath.Join(scripts, "nbdroot.sh"), "usr/share/nbd/nbdroot.sh", 0o644))

	ca := harness.NewAuthority(t, s.dir, "ca")
	certs := ca.Issue(t, "server", "server", "station.example")
	mine := ca.Issue(t, "client", "client")
	for _, name := range []string{"ca-cert.pem", "client-cert.pem", "client-key.pem"} {
		s.must(s.debian.Put(filepath.Join(mine, name), "etc/nbd/tls/"+name, 0o600))
	}
	s.image = filepath.Join(s.dir, "root.img")
	s.config = harness.Config{
		TCP: true, Generic: harness.ServerLines(certs, ca.CA()),
		Exports: "[root]\nexportname = " + s.image + "\n[secret]\nforce_tls = true\nexportname = " + s.image + "\n",
	}
	return s
}

// agentUnit and agentTarget make systemd start the agent, and nothing that it needs not.
const (
	agentUnit = `[Service]
ExecStart=/usr/sbin/vm-agent ` + guest.SystemAgentWord + `
Environment=PATH=/usr/sbin:/usr/bin:/sbin:/bin
StandardOutput=journal+console
StandardError=journal+console
`
	agentTarget = `[Unit]
Requires=basic.target vm-agent.service
After=basic.target vm-agent.service
AllowIsolate=yes
`
)

func (s *station) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// initramfsTools lets mkinitramfs make an initramfs with our hook, and then the image of
// the root. It returns the path of the former.
func (s *station) initramfsTools() string {
	ctx := s.t.Context()
	s.must(s.debian.InstallKernel(ctx, s.kernel))
	for from, to := range map[string]string{
		"hooks/nbd": "hooks/nbd", "scripts/local-top/nbd": "scripts/local-top/nbd",
	} {
		s.must(s.debian.Put("../../initramfs/initramfs-tools/"+from, "usr/share/initramfs-tools/"+to, 0o755))
	}
	s.must(s.debian.Write("etc/initramfs-tools/conf.d/vm", "MODULES=list\nCOMPRESS=gzip\nUMASK=0077\n", 0o644))
	s.must(s.debian.Write("etc/initramfs-tools/modules", "virtio_pci\nvirtio_net\next4\n", 0o644))
	s.must(s.debian.run(ctx, "mkinitramfs", "-o", "/boot/initrd", s.kernel.Version()))
	return s.takeArchive()
}

// dracut is initramfsTools with dracut.
func (s *station) dracut() string {
	ctx := s.t.Context()
	s.must(s.debian.InstallKernel(ctx, s.kernel))
	module := "usr/lib/dracut/modules.d/95nbd"
	s.must(os.RemoveAll(filepath.Join(s.debian.dir, module)))
	found, err := filepath.Glob("../../initramfs/dracut/95nbd/*")
	s.must(err)
	for _, path := range found {
		s.must(s.debian.Put(path, filepath.Join(module, filepath.Base(path)), 0o755))
	}
	s.must(s.debian.run(ctx, "dracut", "--force", "--no-hostonly", "--no-hostonly-cmdline", "--no-early-microcode", "--gzip",
		"--modules", "base network network-legacy nbd rootfs-block fs-lib udev-rules kernel-modules",
		"--drivers", "nbd virtio_pci virtio_net ext4", "--kver", s.kernel.Version(), "/boot/initrd"))
	return s.takeArchive()
}

// takeArchive takes the initramfs out of the Debian, makes an image of the rest, and
// starts a server with it.
func (s *station) takeArchive() string {
	archive := filepath.Join(s.dir, "initrd")
	harness.CopyFile(s.t, filepath.Join(s.debian.dir, "boot/initrd"), archive)
	s.must(s.debian.Image(s.t.Context(), s.image, 320<<20))
	s.must(os.RemoveAll(s.debian.dir))
	s.server = harness.Start(s.t, s.config)
	return archive
}

// boot boots the station with an initramfs and words for the kernel's command line.
func (s *station) boot(archive, words string) *Lab {
	s.boots++
	l := &Lab{
		t: s.t, name: fmt.Sprintf("root-%s-%d", filepath.Base(s.t.Name()), s.boots), kernel: s.kernel, archive: archive,
		network: true, patient: rootPatience, memory: 512, words: "rw net.ifnames=0 " + words,
	}
	s.t.Cleanup(l.discard)
	l.boot(s.t)
	return l
}

// live boots, works while the server goes away and comes back, and boots again.
func (s *station) live(archive, words string, connections int) {
	l := s.boot(archive, words)
	s.step(l, "root-look", strconv.Itoa(connections))
	const restarts = 2
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.restart(ctx, restarts)
	}()
	s.step(l, "root-work", strconv.Itoa(restarts))
	cancel()
	<-done
	s.shutDown(l)
}

// again boots, and finds what live has left.
func (s *station) again(archive, words string, connections int) {
	l := s.boot(archive, words)
	s.step(l, "root-look", strconv.Itoa(connections))
	s.step(l, "root-verify")
	s.shutDown(l)
}

// step runs a step, and ends the test if it fails.
func (s *station) step(l *Lab, name string, args ...string) {
	s.t.Helper()
	l.Run(s.t, name, args...)
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// restart kills the server n times, the first time it stops it, each time after a client
// has come and written something.
func (s *station) restart(ctx context.Context, n int) {
	for i := range n {
		before := s.written()
		if !await(ctx, func() bool { return strings.Contains(s.server.Log(), "client connected") && s.written() != before }) {
			return
		}
		if i == 0 {
			s.server.Stop()
		} else {
			s.server.Kill()
		}
		s.server.Restart(s.t)
	}
}

// written tells when the image was written last.
func (s *station) written() time.Time {
	info, err := os.Stat(s.image)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// await waits until what is so, or reports that ctx has ended before.
func await(ctx context.Context, so func() bool) bool {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !so() {
		select {
		case <-again.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// shutDown lets the system start again, which ends QEMU, and wants it to end well: no
// error, and a root file system that was unmounted in time.
func (s *station) shutDown(l *Lab) {
	s.t.Helper()
	m := l.machine
	// The machine may be gone before it has answered.
	c := guest.Command{Nonce: rand.Text(), Limit: runLimit, Name: "root-reboot"}
	_, err := io.WriteString(m.stdin, c.Line())
	s.must(err)
	limit := time.After(rootPatience)
	for open := true; open; {
		var e guest.Event
		select {
		case e, open = <-m.events:
			if e.Kind == guest.Log || e.Kind == guest.Fail {
				s.t.Errorf("while the system goes down: %+v", e)
			}
		case <-limit:
			l.showConsole(s.t)
			s.t.Fatalf("the system has not gone down in %v", rootPatience)
		}
	}
	l.machine = nil
	console, err := os.ReadFile(m.console)
	s.must(err)
	text := string(console)
	for _, bad := range []string{"I/O error", "EXT4-fs error", "Kernel panic", "hung_task", "blocked for more than"} {
		if strings.Contains(text, bad) {
			s.t.Errorf("the console says %q:\n%s", bad, tailOf(text))
		}
	}
	if !strings.Contains(text, "reboot: Restarting system") {
		s.t.Errorf("the system did not go down as it should:\n%s", tailOf(text))
	}
	if out := harness.Run(s.t, "e2fsck", "-f", "-n", s.image); strings.Contains(out, "recover") {
		s.t.Errorf("the root file system was not unmounted:\n%s", out)
	}
}

// tailOf returns the end of a text.
func tailOf(text string) string { return text[max(0, len(text)-6000):] }

// alsoIPv6 returns an address and a port by which the machine reaches the server through
// IPv6, if this host has that, else through IPv4.
func (s *station) alsoIPv6() (host string, port int) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		s.t.Logf("no IPv6 on this host: %v", err)
		return guest.HostAddress, s.server.Port
	}
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.forward(c)
		}
	}()
	return "fec0::2", l.Addr().(*net.TCPAddr).Port // QEMU's name for this host
}

// forward passes bytes between a client and the server, until one of them ends.
func (s *station) forward(c net.Conn) {
	defer c.Close()
	up, err := net.Dial("tcp", s.server.TCPAddr())
	if err != nil {
		return
	}
	defer up.Close()
	done := make(chan struct{}, 2)
	go func() { io.Copy(up, c); done <- struct{}{} }()
	go func() { io.Copy(c, up); done <- struct{}{} }()
	<-done
}
