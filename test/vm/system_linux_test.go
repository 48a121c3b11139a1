package vm

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// rootPatience is how long a whole Debian may take to boot: without KVM, half a minute on
// a machine that has nothing else to do.
const rootPatience = 5 * time.Minute

// system is a Debian with systemd, to boot in a virtual machine, with our agent and our
// nbd-client in it.
type system struct {
	t      *testing.T
	debian *Debian
	kernel *Kernel
	dir    string // for the test's files
	disk   string // path of an image that is the machine's first disk, or ""
	wire   wire   // to another machine, in place of the network with the host, or none
	boots  int
	made   int // images of initramfs
}

// newSystem makes the Debian, which can then be changed.
func newSystem(t *testing.T, series string) *system {
	ctx := t.Context()
	s := &system{t: t, dir: t.TempDir()}
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
	s.must(s.debian.InstallKernel(ctx, s.kernel))
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

// name returns the name of the test, for those of files.
func (s *system) name() string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(s.t.Name(), "Test"), "/", "-"))
}

func (s *system) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// initramfs lets mkinitramfs make an initramfs with a choice of modules as initramfs.conf(5)
// has it, and these, which it loads. It returns its path.
func (s *system) initramfs(choice string, modules ...string) string {
	s.must(s.debian.Write("etc/initramfs-tools/conf.d/vm", "MODULES="+choice+"\nCOMPRESS=gzip\nUMASK=0077\n", 0o644))
	s.must(s.debian.Write("etc/initramfs-tools/modules", strings.Join(modules, "\n")+"\n", 0o644))
	s.must(s.debian.run(s.t.Context(), "mkinitramfs", "-o", "/boot/initrd", s.kernel.Version()))
	return s.takeInitramfs()
}

// takeInitramfs takes /boot/initrd out of the Debian, and returns its path here.
func (s *system) takeInitramfs() string {
	s.made++
	archive := filepath.Join(s.dir, fmt.Sprint("initrd", s.made))
	harness.CopyFile(s.t, filepath.Join(s.debian.dir, "boot/initrd"), archive)
	return archive
}

// takeImage makes an image of the Debian, which is gone then, without some of its folders.
func (s *system) takeImage(path string, without ...string) {
	for _, p := range without {
		s.must(os.RemoveAll(filepath.Join(s.debian.dir, p)))
	}
	s.must(s.debian.Image(s.t.Context(), path, 400<<20))
	s.must(os.RemoveAll(s.debian.dir))
}

// boot boots the system with an initramfs and words for the kernel's command line.
func (s *system) boot(archive, words string) *Lab {
	s.boots++
	l := &Lab{
		t: s.t, name: fmt.Sprintf("%s-%d", s.name(), s.boots), kernel: s.kernel, archive: archive, disk: s.disk,
		wire: s.wire, network: s.wire == wire{}, patient: rootPatience, memory: 512,
		words: "rw net.ifnames=0 " + words,
	}
	s.t.Cleanup(l.discard)
	l.boot(s.t)
	return l
}

// step runs a step, and ends the test if it fails.
func (s *system) step(l *Lab, name string, args ...string) {
	s.t.Helper()
	l.Run(s.t, name, args...)
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// shutDown lets the system start again, which ends QEMU, and wants it to end well: no
// error, and file systems that were unmounted in time. They are files, or such as
// e2fsck(8) takes for a stretch of one. It returns what the console says.
func (s *system) shutDown(l *Lab, fileSystems ...string) string {
	s.t.Helper()
	m := l.machine
	// The machine may be gone before it has answered.
	c := guest.Command{Nonce: rand.Text(), Limit: runLimit, Name: "reboot"}
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
	for _, name := range fileSystems {
		if out := harness.Run(s.t, "e2fsck", "-f", "-n", name); strings.Contains(out, "recover") {
			s.t.Errorf("the file system in %s was not unmounted:\n%s", name, out)
		}
	}
	return text
}

// tailOf returns the end of a text.
func tailOf(text string) string { return text[max(0, len(text)-6000):] }
