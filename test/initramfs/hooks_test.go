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
