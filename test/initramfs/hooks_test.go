package initramfs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sandbox is a folder in which a hook runs: the paths in its text that begin with one of
// those that an initramfs has lie in it.
type sandbox struct {
	t   *testing.T
	dir string
}

// systemPaths are what hooks read and write.
var systemPaths = regexp.MustCompile(`/(lib/nbd|proc/cmdline|etc/udev|run|sys|conf|tmp/net|tmp/cmdline|scripts)\b`)

// newSandbox makes one, with our library in it and a kernel's command line.
func newSandbox(t *testing.T, cmdline string) *sandbox {
	t.Helper()
	s := &sandbox{t, t.TempDir()}
	s.write("proc/cmdline", cmdline+"\n")
	s.install(scripts+"/nbdroot.sh", "lib/nbd/nbdroot.sh")
	for _, d := range []string{"etc/udev/rules.d", "run", "conf", "sys/block/nbd0", "sys/class/net/eth0"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// write writes a file in the sandbox.
func (s *sandbox) write(name, text string) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// install puts a script of ours into the sandbox, with paths that stay there.
func (s *sandbox) install(from, to string) string {
	s.t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(to, systemPaths.ReplaceAllString(string(text), s.dir+"$0"))
	return filepath.Join(s.dir, to)
}

// read returns a file of the sandbox, "" if it is not there.
func (s *sandbox) read(name string) string {
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	return string(text)
}

// stubs stand for the programs of an initramfs: they note how they were called, and the
// client brings a device, whose number in sysfs is that of a thread.
const stubs = `
log=$SANDBOX/log
for stub in modprobe mount ip cp; do
	eval "$stub() { echo \"$stub \$*\" >>\"\$log\"; }"
done
chroot() {
	shift
	case "$*" in
	"/sbin/nbd-client -c /dev/nbd0") echo 70 ;;
	*gone*) return 1 ;;
	*) echo "client $*" >>"$log"; echo 77 >"$SANDBOX/sys/block/nbd0/pid" ;;
	esac
}
`

// run runs a script with the stubs, in a shell, and returns what it printed.
func (s *sandbox) run(shell []string, script string) string {
	s.t.Helper()
	text := stubs + script
	cmd := exec.Command(shell[0], append(slices.Clone(shell[1:]), "-c", text)...)
	cmd.Env = append(os.Environ(), "SANDBOX="+s.dir, "NBDROOT=", "NBDCLIENT=/bin/sh", "ROOTPATH=", "ROOTSERVER=")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil || errs.Len() > 0 {
		s.t.Fatalf("%v\n%s%s\nlog:\n%s", err, out, &errs, s.read("log"))
	}
	return string(out)
}

// expect wants lines in a text.
func expect(t *testing.T, what, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, line) {
			t.Errorf("%s lacks %q:\n%s", what, line, text)
		}
	}
}

// initramfsToolsFunctions are those of initramfs-tools that the script calls.
const initramfsToolsFunctions = `
log_begin_msg() { :; }
log_end_msg() { :; }
log_failure_msg() { echo "failure: $*"; }
log_warning_msg() { echo "warning: $*"; }
wait_for_udev() { :; }
configure_networking() { echo network >>"$SANDBOX/log"; IPV4DNS0=10.0.2.3 ROOTPATH=$DHCPPATH; }
`

func TestInitramfsTools(t *testing.T) {
	for name, shell := range shells(t) {
		for _, tt := range []struct {
			line, dhcp    string
			client, param []string
			network       bool
		}{
			{"root=nbd:10.0.2.2:root:ext4:noatime", "", []string{"client /sbin/nbd-client 10.0.2.2 /dev/nbd0 -N root"},
				[]string{"ROOT='/dev/nbd0'", "ROOTFSTYPE='ext4'", "ROOTFLAGS='-o noatime'"}, true},
			{"nbdroot=dhcp root=UUID=1-2", "nbd://10.0.2.2/root", []string{"client /sbin/nbd-client nbd://10.0.2.2/root /dev/nbd0"}, []string{"ROOT='UUID=1-2'"}, true},
			{"nbdroot=[fe80::1%eth0]/root", "", []string{"ip link set dev eth0 up", "client /sbin/nbd-client fe80::1%eth0 /dev/nbd0 -N root"}, []string{"ROOT='/dev/nbd0'"}, false},
			{"root=/dev/sda1", "", nil, nil, false},
		} {
			s := newSandbox(t, tt.line)
			s.write("scripts/functions", initramfsToolsFunctions)
			hook := s.install(scripts+"/initramfs-tools/scripts/local-top/nbd", "scripts/local-top/nbd")
			out := s.run(shell, "DHCPPATH='"+tt.dhcp+"'\nset --\n. "+hook)
			log, param := s.read("log"), s.read("conf/param.conf")
			expect(t, name+": "+tt.line+": log", log, tt.client...)
			expect(t, name+": "+tt.line+": param.conf", param, tt.param...)
			if tt.client == nil && (log != "" || param != "") || out != "" || strings.Contains(log, "network") != tt.network {
				t.Errorf("%s: %s: it says %q, and does\n%s%s", name, tt.line, out, log, param)
			}
			if tt.client != nil && s.read("run/sendsigs.omit.d/nbd-root") != "70\n" {
				t.Errorf("%s: %s: sysvinit would kill the client", name, tt.line)
			}
			if tt.network && !strings.Contains(s.read("run/initramfs/nbd/etc/resolv.conf"), "nameserver 10.0.2.3") {
				t.Errorf("%s: %s: no name server in the client's place", name, tt.line)
			}
		}
		s := newSandbox(t, "")
		hook := s.install(scripts+"/initramfs-tools/scripts/local-top/nbd", "scripts/local-top/nbd")
		if out := s.run(shell, "set -- prereqs\n. "+hook); out != "udev\n" {
			t.Errorf("%s: prereqs says %q", name, out)
		}
	}
}

// TestDracut runs both halves of dracut's module, which is for shells that are POSIX'.
func TestDracut(t *testing.T) {
	const functions = `
getcmdline() { cat "$SANDBOX/proc/cmdline"; }
die() { echo "die: $*"; exit 0; }
warn() { echo "warn: $*"; }
`
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
			s := newSandbox(t, tt.line)
			parse := s.install(scripts+"/dracut/95nbd/parse-nbdroot.sh", "parse.sh")
			out := s.run(shell, functions+"netroot='"+tt.netroot+"' root= rootok= fstype= rflags=\n. "+parse+
				"\necho netroot=$netroot root=$root rootok=$rootok fstype=$fstype rflags=$rflags")
			if strings.TrimSpace(out) != tt.parsed {
				t.Errorf("%s: %s:\n got %s\nwant %s", name, tt.line, out, tt.parsed)
			}
			if rule := s.read("etc/udev/rules.d/99-nbdroot.rules"); strings.Contains(rule, `KERNEL=="nbd0"`) != tt.rule {
				t.Errorf("%s: %s: the rule for udev is %q", name, tt.line, rule)
			}
			if tt.client == "" {
				continue
			}
			attach := s.install(scripts+"/dracut/95nbd/nbdroot.sh", "nbdroot")
			// The handler is a program of its own, and ends by exit.
			out = s.run(shell, functions+"PATH=$PATH\nset -- eth0 '"+tt.netroot+"' /sysroot\n. "+attach)
			expect(t, name+": "+tt.line+": log", s.read("log"), "client /sbin/nbd-client "+tt.client)
			if out != "" {
				t.Errorf("%s: %s: it says %q", name, tt.line, out)
			}
		}
	}
}

// TestDracutGenerator wants a unit for the root where systemd runs in the initramfs.
func TestDracutGenerator(t *testing.T) {
	const functions = `
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
label_uuid_to_dev() { echo "/dev/disk/by-label/${1#LABEL=}"; }
`
	for name, shell := range shells(t) {
		for _, tt := range []struct{ line, want string }{
			{"ro root=nbd:10.0.2.2:root:ext4:noatime", "What=/dev/nbdroot\nType=ext4\nOptions=noatime,ro\n"},
			{"root=nbd://10.0.2.2/root rootfstype=xfs rootflags=a,b", "What=/dev/nbdroot\nType=xfs\nOptions=a,b\n"},
			{"root=LABEL=x netroot=nbd:10.0.2.2:root", "What=/dev/disk/by-label/x\n"},
			{"root=/dev/sda1", ""},
		} {
			s := newSandbox(t, tt.line)
			generator := s.install(scripts+"/dracut/95nbd/nbd-generator.sh", "generator")
			s.run(shell, functions+"set -- "+s.dir+"/a "+s.dir+"/b "+s.dir+"/c\n. "+generator)
			unit := s.read("b/sysroot.mount")
			if _, rest, _ := strings.Cut(unit, "Where=/sysroot\n"); rest != tt.want {
				t.Errorf("%s: %s: the unit is %q, want %q", name, tt.line, unit, tt.want)
			}
		}
	}
}
