package initramfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dracutFunctions are those of dracut that the module calls.
const dracutFunctions = `
hookdir=$SANDBOX/hooks
getcmdline() { cat "$SANDBOX/proc/cmdline"; }
getarg() {
	for word in $(getcmdline); do
		case $1 in
		*=) case $word in "$1"*) echo "${word#"$1"}"; return 0 ;; esac ;;
		*) [ "$word" != "$1" ] || return 0 ;;
		esac
	done
	return 1
}
label_uuid_to_dev() {
	case $1 in
	LABEL=*) echo "/dev/disk/by-label/${1#LABEL=}" ;;
	*) echo "$1" ;;
	esac
}
dev_unit_name() { echo "${1#/}" | sed 's,-,\\x2d,g;s,/,-,g'; }
die() { echo "die: $*"; exit 0; }
warn() { echo "warn: $*"; }
for stub in wait_for_dev udevadm systemctl; do
	eval "$stub() { echo \"$stub \$*\" >>\"\$log\"; }"
done
`

// newDracut makes a sandbox with the module's own library in it.
func newDracut(t *testing.T, cmdline string) *sandbox {
	t.Helper()
	s := newSandbox(t, cmdline)
	s.install(scripts+"/dracut/95nbd/nbd-unit.sh", "lib/nbd/nbd-unit.sh")
	for _, d := range []string{"hooks/initqueue/finished", "hooks/mount"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// TestDracut runs both halves of dracut's module, which is for shells that are POSIX'.
func TestDracut(t *testing.T) {
	for name, shell := range shells(t) {
		for _, tt := range []struct {
			line, netroot string // netroot: what DHCP has told
			parsed        string
			rule          bool
			client        string
		}{
			{"root=nbd:10.0.2.2:root:ext4:ro", "", "netroot=nbd:10.0.2.2:root:ext4:ro root=block:/dev/nbdroot rootok=1 fstype=ext4 rflags=ro", true, "10.0.2.2 /dev/nbd0 -N root"},
			{"root=nbds://srv/root rootfstype=xfs", "", "netroot=nbds://srv/root root=block:/dev/nbdroot rootok=1 fstype= rflags=", true, "nbds://srv/root /dev/nbd0"},
			{"root=LABEL=disk netroot=nbd:10.0.2.2:root", "", "netroot=nbd:10.0.2.2:root root=block:LABEL=disk rootok=1 fstype= rflags=", false, "10.0.2.2 /dev/nbd0 -N root"},
			{"nbdroot=10.0.2.2,root", "", "netroot=nbd:10.0.2.2,root root=block:/dev/nbdroot rootok=1 fstype= rflags=", true, "10.0.2.2 /dev/nbd0 -N root"},
			{"root=/dev/root netroot=dhcp", "nbd:10.0.2.2:root", "netroot=nbd:10.0.2.2:root root=block:/dev/nbdroot rootok=1 fstype= rflags=", true, "10.0.2.2 /dev/nbd0 -N root"},
			{"nbdroot=dhcp", "", `die: nbd: "dhcp" is for DHCP; dracut wants it as netroot=dhcp, with a root path like nbd:SERVER:EXPORT`, false, ""},
			{"root=nfs:10.0.2.2:/srv", "", "netroot= root= rootok= fstype= rflags=", false, ""},
		} {
			s := newDracut(t, tt.line)
			parse := s.install(scripts+"/dracut/95nbd/parse-nbdroot.sh", "parse.sh")
			out := s.run(shell, dracutFunctions+"netroot='"+tt.netroot+"' root= rootok= fstype= rflags=\n. "+parse+
				"\necho netroot=$netroot root=$root rootok=$rootok fstype=$fstype rflags=$rflags")
			if strings.TrimSpace(out) != tt.parsed {
				t.Errorf("%s: %s:\n got %s\nwant %s", name, tt.line, out, tt.parsed)
			}
			if rule := s.read("etc/udev/rules.d/99-nbdroot.rules"); strings.Contains(rule, `KERNEL=="nbd0"`) != tt.rule {
				t.Errorf("%s: %s: the rule for udev is %q", name, tt.line, rule)
			}
			if finished := s.read("hooks/initqueue/finished/nbdroot.sh"); strings.Contains(finished, "/block/nbd0/pid ]") != (tt.client != "") {
				t.Errorf("%s: %s: dracut waits for %q", name, tt.line, finished)
			}
			if tt.client == "" {
				continue
			}
			s.attach(t, shell, tt.netroot, "")
			expect(t, name+": "+tt.line+": log", s.read("log"), "client /sbin/nbd-client "+tt.client)
		}
	}
}

// attach runs the handler, which is a program of its own and ends by exit, as dracut does
// when an interface is up.
func (s *sandbox) attach(t *testing.T, shell []string, netroot, environment string) {
	t.Helper()
	attach := s.install(scripts+"/dracut/95nbd/nbdroot.sh", "nbdroot")
	out := s.run(shell, dracutFunctions+environment+"\nrflags=rw\nset -- eth0 '"+netroot+"' /sysroot\n. "+attach)
	if out != "" {
		t.Errorf("%v: the handler says %q", shell, out)
	}
}

// TestDracutDHCP wants what DHCP has told to be mounted, where root= does not name it: the
// shell that told dracut what the root is has ended by then.
func TestDracutDHCP(t *testing.T) {
	const path = "nbd:10.0.2.2:root:ext4:noatime"
	for name, shell := range shells(t) {
		for _, tt := range []struct {
			line string
			own  bool
		}{
			{"netroot=dhcp", true}, {"root=dhcp rw", true}, {"root=LABEL=disk netroot=dhcp", false},
		} {
			s := newDracut(t, tt.line)
			s.attach(t, shell, path, "")
			want := ""
			if tt.own {
				want = "root=block:/dev/nbdroot\nfstype='ext4'\nrflags='noatime,rw'\n"
			}
			if got := s.read("hooks/mount/10-nbdroot.sh"); got != want {
				t.Errorf("%s: %s: what is mounted is %q, want %q", name, tt.line, got, want)
			}
			expect(t, name+": "+tt.line+": log", s.read("log"), "udevadm control --reload\n", "client /sbin/nbd-client 10.0.2.2 /dev/nbd0 -N root")

			s = newDracut(t, tt.line)
			s.attach(t, shell, path, "DRACUT_SYSTEMD=1")
			log, unit := s.read("log"), s.read("run/systemd/system/sysroot.mount")
			if strings.Contains(unit, "What=/dev/nbdroot\nType=ext4\nOptions=noatime\n") != tt.own || strings.Contains(log, "systemctl daemon-reload\nsystemctl --no-block start sysroot.mount\n") != tt.own {
				t.Errorf("%s: %s: the unit is %q, and it does\n%s", name, tt.line, unit, log)
			}
			if s.read("hooks/mount/10-nbdroot.sh") != "" {
				t.Errorf("%s: %s: a script is to mount the root beside systemd", name, tt.line)
			}
		}
	}
}

// TestDracutGenerator wants units for the root where systemd runs in the initramfs: one that
// mounts it, required by the target, and one that lets the device take its time.
func TestDracutGenerator(t *testing.T) {
	for name, shell := range shells(t) {
		for _, tt := range []struct{ line, device, want string }{
			{"ro root=nbd:10.0.2.2:root:ext4:noatime", "dev-nbdroot", "What=/dev/nbdroot\nType=ext4\nOptions=noatime,ro\n"},
			{"root=nbd://10.0.2.2/root rootfstype=xfs rootflags=a,b", "dev-nbdroot", "What=/dev/nbdroot\nType=xfs\nOptions=a,b\n"},
			{"root=LABEL=x netroot=nbd:10.0.2.2:root", `dev-disk-by\x2dlabel-x`, "What=/dev/disk/by-label/x\n"},
			{"nbdroot=10.0.2.2,root", "dev-nbdroot", "What=/dev/nbdroot\n"},
			{"root=/dev/sda1", "", ""},
			{"root=dhcp", "", ""},
		} {
			s := newDracut(t, tt.line)
			generator := s.install(scripts+"/dracut/95nbd/nbd-generator.sh", "generator")
			s.run(shell, dracutFunctions+"set -- "+s.dir+"/a "+s.dir+"/b "+s.dir+"/c\n. "+generator)
			unit := s.read("b/sysroot.mount")
			if _, rest, _ := strings.Cut(unit, "Where=/sysroot\n"); rest != tt.want {
				t.Errorf("%s: %s: the unit is %q, want %q", name, tt.line, unit, tt.want)
			}
			if tt.want == "" {
				continue
			}
			expect(t, name+": "+tt.line, unit, "After=systemd-fsck@"+tt.device+".service\n")
			if s.read("b/initrd-root-fs.target.requires/sysroot.mount") != unit {
				t.Errorf("%s: %s: nothing requires the unit", name, tt.line)
			}
			expect(t, name+": "+tt.line, s.read("b/"+tt.device+".device.d/nbd.conf"), "JobTimeoutSec=0\n", "JobRunningTimeoutSec=0\n")
		}
	}
}
