package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
	"nbd.example/nbd/test/vm/scenarios"
)

// TestUnits boots a Debian with our units, rules of udev and nbdtab, which mounts file
// systems and swaps on exports of our server as fstab says. A second server is started there
// by its own units. Its services are stopped,
// started, restarted and killed, and in the end the system must go down in good order. Then
// it boots again, without the service that keeps many devices, and before the server is
// there.
func TestUnits(t *testing.T) {
	choose(t, "Units")
	skipUnlessDaily(t)
	testgate.Requires(t, Need("mkfs.ext4", "e2fsck", "chroot", "mknod", "sfdisk", "mkswap"), testgate.Root())
	t.Parallel()
	s := newSystem(t, "6.12")
	server := harness.Start(t, harness.Config{TCP: true, Exports: unitsExports(s)})
	s.installUnits(server.Port)
	s.installServer()
	archive := s.initramfs("list", "virtio_pci", "virtio_net", "virtio_blk", "ext4")
	s.disk = filepath.Join(s.dir, "root.img")
	s.takeImage(s.disk, "boot", "usr/lib/dracut")
	const words = "root=/dev/vda systemd.show_status=1 "
	l := s.boot(archive, words)
	for _, step := range []string{"boot", "server", "names", "start", "restart", "kill", "leave"} {
		s.unitsStep(l, step, server)
	}
	s.goDown(l, server, append(unitsNames, "left")...)
	// Without swap space, for which most of systemd would wait.
	l = s.boot(archive, words+"systemd.mask=nbd-client.service systemd.swap=0")
	server.Restart(t)
	for _, step := range []string{"late", "orphans"} {
		s.unitsStep(l, step, server)
	}
	s.goDown(l, server, "data", "parts")
}

// unitsStep runs a step as a test of its own.
func (s *system) unitsStep(l *Lab, step string, server *harness.Server) {
	if !s.t.Run(step, func(t *testing.T) { l.Run(t, "units-"+step, strconv.Itoa(server.Port)) }) {
		s.t.FailNow()
	}
}

// goDown shuts the system down, and the server then. All connections, which must have been
// to these exports at least, must have ended in good order.
func (s *system) goDown(l *Lab, server *harness.Server, exports ...string) {
	const first = 1 << 20 // where partitions begin, in bytes
	console := s.shutDown(l, s.disk, s.image("data"), fmt.Sprintf("%s?offset=%d", s.image("parts"), first), fmt.Sprintf("%s?offset=%d", s.image("spare"), first))
	for _, bad := range []string{"timed out", "Failed unmounting", "target is busy"} {
		if strings.Contains(console, bad) {
			s.t.Errorf("the console says %q:\n%s", bad, tailOf(console))
		}
	}
	server.Stop()
	wantFarewells(s.t, server.Log(), exports)
}

// wantFarewells wants all connections to have ended as the protocol has it: what is
// attached when a machine goes down without a word ends otherwise.
func wantFarewells(t *testing.T, log string, exports []string) {
	ended := map[string]int{}
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "client disconnected") {
			continue
		}
		for _, export := range exports {
			if strings.Contains(line, "export="+export+" ") || strings.Contains(line, `export="`+export+`" `) {
				ended[export]++
			}
		}
		if !strings.Contains(line, "the client disconnected") {
			t.Errorf("a connection did not end in good order: %s", line)
		}
	}
	for _, export := range exports {
		if ended[export] == 0 {
			t.Errorf("no connection to %s has ended before the server", export)
		}
	}
}

// unitsNames are those of the exports; see the scenarios. There is one more, "left", in
// memory.
var unitsNames = []string{"data", "parts", "swap", "spare"}

// image returns the path of the file behind an export.
func (s *system) image(export string) string { return filepath.Join(s.dir, export+".img") }

// unitsExports makes the images that the server exports, and returns its sections.
func unitsExports(s *system) string {
	const size = 64 << 20
	var b strings.Builder
	for _, name := range unitsNames {
		s.must(os.WriteFile(s.image(name), nil, 0o600))
		s.must(os.Truncate(s.image(name), size))
		fmt.Fprintf(&b, "[%s]\nexportname = %s\n", name, s.image(name))
	}
	run := func(stdin, program string, args ...string) {
		if out, errs, err := harness.Command(s.t, stdin, program, args...); err != nil {
			s.t.Fatalf("%s %q: %v\n%s%s", program, args, err, out, errs)
		}
	}
	run("", "mkfs.ext4", "-q", "-F", "-U", scenarios.UnitsUUID, s.image("data"))
	run("", "mkswap", s.image("swap"))
	for _, name := range []string{"parts", "spare"} {
		run("label: dos\nstart=1MiB, type=83\n", "sfdisk", "-q", s.image(name))
		run("", "mkfs.ext4", "-q", "-F", "-E", "offset=1048576", s.image(name), strconv.Itoa(size>>10-1024)+"k")
	}
	return b.String() + "[left]\nexportname = memory:16M\n"
}

// installServer installs our server, which a step starts.
func (s *system) installServer() {
	program := filepath.Join(s.dir, "nbd-server")
	s.must(Build(s.t.Context(), "nbd.example/nbd/cmd/nbd-server", program))
	s.must(s.debian.Put(program, "usr/bin/nbd-server", 0o755))
	for _, unit := range []string{"nbd-server.service", "nbd-server.socket"} {
		s.must(s.debian.Put(filepath.Join("../../systemd", unit), filepath.Join("usr/lib/systemd/system", unit), 0o644))
	}
	s.must(os.MkdirAll(filepath.Join(s.debian.dir, "etc/nbd-server"), 0o755))
}

// installUnits installs what a distribution would, and the tables of an administrator.
func (s *system) installUnits(port int) {
	d := s.debian
	for from, to := range map[string]string{
		"systemd/nbd-client.service": "usr/lib/systemd/system", "systemd/nbd@.service": "usr/lib/systemd/system",
		"udev/60-nbd-client.rules": "usr/lib/udev/rules.d",
	} {
		s.must(d.Put(filepath.Join("../..", from), filepath.Join(to, filepath.Base(from)), 0o644))
	}
	s.must(os.Symlink("/usr/sbin/nbd-client", filepath.Join(d.dir, "usr/lib/systemd/system-generators/nbd-generator")))
	host := fmt.Sprintf("%s:%d", guest.HostAddress, port)
	s.must(d.Write("etc/nbdtab", fmt.Sprintf(`# device, server, export, options
nbd0 %[1]s data
nbd1 nbd://%[1]s/parts auto,identifier=parts
nbd2 %[1]s swap swap
nbd3 %[1]s spare identifier=spare
`, host), 0o644))
	s.must(d.Write("etc/fstab", `/dev/nbd0 /mnt/data ext4 _netdev,x-systemd.device-timeout=0 0 2
/dev/disk/by-nbd/parts-part1 /mnt/part ext4 _netdev,x-systemd.device-timeout=0 0 2
/dev/nbd2 none swap nofail,_netdev,x-systemd.device-timeout=0
/dev/disk/by-nbd/spare-part1 /mnt/spare ext4 noauto,_netdev,x-systemd.device-timeout=0
`, 0o644))
	for _, dir := range []string{"data", "part", "spare"} {
		s.must(os.MkdirAll(filepath.Join(d.dir, "mnt", dir), 0o755))
	}
	s.must(d.Write("etc/systemd/network/eth.network", "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n", 0o644))
	s.must(d.Write("etc/systemd/system/default.target", agentTarget+"Wants=remote-fs.target\n", 0o644))
	ctx := s.t.Context()
	s.must(d.run(ctx, "systemd-sysusers"))
	s.must(d.run(ctx, "systemctl", "enable", "nbd-client.service", "systemd-networkd.service"))
}
