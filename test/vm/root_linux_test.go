package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
	"nbd.example/nbd/test/vm/scenarios"
)

// station is a Debian without a disk: its root is an export of our server.
type station struct {
	*system
	config harness.Config
	server *harness.Server
	image  string // what the server exports as root
	beside *Lab   // a machine that serves the station's network, or nil
}

// rootPath is how DHCP's root path begins: the server is at its default port.
const rootPath = "nbd:" + scenarios.BesideIPv4

// TestRootOnNBD boots a Debian whose root file system is on our server, by each of the
// hooks that Debian has a use for, and works in it while the server is restarted. What
// one boot has written, the next one finds.
func TestRootOnNBD(t *testing.T) {
	choose(t, "RootOnNBD")
	testgate.Requires(t, Need("mkfs.ext4", "e2fsck", "chroot", "mknod", "dnsmasq"), testgate.Root())
	t.Parallel()
	t.Run("initramfs-tools", func(t *testing.T) {
		skipUnlessDaily(t)
		s := newStation(t, "6.12")
		words := s.installByReadme()
		archive := s.initramfs("most") // as it is when nobody has chosen
		s.serve()
		s.besideServer()
		// By a name, which has an IPv6 address alone, and then by what DHCP says, with IPv4, TLS
		// and two connections.
		s.withDHCP(func() { s.live(archive, strings.Replace(words, "server1/", "server1/root", 1), 1) })
		s.withDHCP(func() { s.again(archive, "nbdroot=dhcp ip=dhcp", 2) }, rootPath+":secret:ext4:noatime:tls,tlshostname=station.example,conns=2")
		s.server.Stop()
	})
	t.Run("dracut", func(t *testing.T) {
		if !asked("dracut") && !testgate.Wanted(restWord) {
			t.Skipf("takes four minutes: runs when -run names dracut, or with %s=%s", testgate.Run, restWord)
		}
		s := newStation(t, "6.1")
		plain, systemd := s.dracut()
		s.serve()
		// As dracut's documentation has it, which our hooks take everywhere.
		s.live(systemd, fmt.Sprintf("ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off root=nbd:%s:%d:root:ext4:noatime", guest.HostAddress, s.server.Port), 1)
		s.besideServer()
		// As Debian's nbd-client has it, through IPv6.
		s.withDHCP(func() {
			s.again(plain, fmt.Sprintf("ip=auto6 nbdroot=[%s]/root root=/dev/nbd0", scenarios.BesideIPv6), 1)
		})
		s.withDHCP(func() { s.again(systemd, "netroot=dhcp", 1) }, rootPath+":root:ext4:noatime")
		s.withDHCP(func() { s.again(plain, "root=dhcp", 1) }, rootPath+":root")
		s.server.Stop()
	})
}

// newStation makes the Debian, and says how to start a server with it.
func newStation(t *testing.T, series string) *station {
	s := &station{system: newSystem(t, series)}
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

// installByReadme installs our client and its hook by README's lines for a station, and
// returns the one for the kernel's command line. What update-initramfs would do is left: it
// asks for more than a Debian has whose packages were only unpacked.
func (s *station) installByReadme() (words string) {
	lines := scenarios.ReadmeLines(s.t, "\nA station without a disk")
	first := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "go build") })
	last := slices.Index(lines, "update-initramfs -u")
	if first < 0 || last != len(lines)-2 {
		s.t.Fatalf("README's lines for a station are not those that are known here: %q", lines)
	}
	into := strings.NewReplacer(" /usr/", " "+s.debian.dir+"/usr/", " /etc/", " "+s.debian.dir+"/etc/")
	for _, line := range lines[first:last] {
		s.must(runIn(s.t.Context(), "../..", "sh", "-c", into.Replace(line)))
	}
	return lines[last+1]
}

// dracut lets dracut make two of initramfs with our module, without systemd and with it. It
// returns their paths.
func (s *station) dracut() (plain, systemd string) {
	s.must(s.debian.Put("../../initramfs/nbdroot.sh", "usr/share/nbd/nbdroot.sh", 0o644))
	module := "usr/lib/dracut/modules.d/95nbd"
	s.must(os.RemoveAll(filepath.Join(s.debian.dir, module)))
	found, err := filepath.Glob("../../initramfs/dracut/95nbd/*")
	s.must(err)
	for _, path := range found {
		s.must(s.debian.Put(path, filepath.Join(module, filepath.Base(path)), 0o755))
	}
	const modules = "base network network-legacy nbd rootfs-block fs-lib udev-rules kernel-modules"
	return s.runDracut(modules), s.runDracut(modules + " systemd systemd-initrd dracut-systemd")
}

// runDracut lets dracut make an initramfs of modules of its own. It returns the path.
func (s *station) runDracut(modules string) string {
	s.must(s.debian.run(s.t.Context(), "dracut", "--force", "--no-hostonly", "--no-hostonly-cmdline", "--no-early-microcode", "--gzip",
		"--modules", modules, "--drivers", "nbd virtio_pci virtio_net ext4", "--kver", s.kernel.Version(), "/boot/initrd"))
	return s.takeInitramfs()
}

// serve makes an image of the Debian, without the kernel and what initramfs images are
// made of, and starts a server with it.
func (s *station) serve() {
	s.takeImage(s.image, "usr/lib/modules", "boot", "usr/lib/dracut")
	s.server = harness.Start(s.t, s.config)
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
	s.shutDown(l, s.image)
}

// again boots, and finds what live has left.
func (s *station) again(archive, words string, connections int) {
	l := s.boot(archive, words)
	s.step(l, "root-look", strconv.Itoa(connections))
	s.step(l, "root-verify")
	s.shutDown(l, s.image)
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
