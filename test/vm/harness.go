package vm

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/vm/guest"
)

// LogVariable names a folder for the consoles of the machines, in the environment.
const LogVariable = "NBD_VM_LOG"

// qemu is the program that is the machine.
const qemu = "qemu-system-x86_64"

// Limits on waiting. They end what is stuck, on loaded hosts too, and are no measure of
// speed.
const (
	bootLimit = 90 * time.Second
	runLimit  = 5 * time.Minute
	longLimit = 25 * time.Minute // for scenarios that CI has no time for
	// grace is how much longer than the machine itself the host waits for the end of
	// a scenario: time in a machine under load is not that of the host.
	grace = time.Minute
)

// Lab runs scenarios on one kernel. It starts machines when they are wanted and ends
// them with the test.
type Lab struct {
	t       testing.TB // of the lab, longer than those of the scenarios
	name    string     // for the names of consoles
	kernel  *Kernel
	archive string // path of the initramfs
	network bool
	limit   time.Duration // of a scenario; 0 means runLimit
	words   string        // further ones for the kernel's command line
	memory  int           // MiB; 0 means 1024
	cpus    int           // processors; 0 means 2
	disk    string        // path of an image that is the machine's first disk, or ""
	wire    wire          // to another machine, or none
	patient time.Duration // how long a machine may take to come up; 0 means bootLimit
	machine *machine
	started int // machines so far
}

// wire joins two machines: each has a network card at one end of it.
type wire struct {
	mine, other string // paths of sockets
}

// turned is the other end of a wire.
func (w wire) turned() wire { return wire{w.other, w.mine} }

// machine is QEMU, running.
type machine struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	events  chan guest.Event // closed when QEMU has ended
	console string           // path of what the kernel said
	noise   strings.Builder  // what QEMU said; read after events is closed
}

// NewLab packs an initramfs for the kernel.
func NewLab(t testing.TB, name string, k *Kernel, c Contents) *Lab {
	t.Helper()
	l := &Lab{t: t, name: name, kernel: k, archive: filepath.Join(t.TempDir(), "initramfs"), network: c.Network}
	f, err := os.Create(l.archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(WriteArchive(w, k, c), w.Flush()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.discard)
	return l
}

// another returns a lab for a machine of the same kind beside this one's.
func (l *Lab) another(name string) *Lab {
	other := &Lab{t: l.t, name: name, kernel: l.kernel, archive: l.archive, network: l.network, cpus: l.cpus}
	l.t.Cleanup(other.discard)
	return other
}

// Run runs a scenario, in the machine that is there or a new one. The test passes only
// if the machine says that this very run did. The args are for the scenario.
func (l *Lab) Run(t testing.TB, scenario string, args ...string) {
	t.Helper()
	if l.machine == nil {
		l.boot(t)
	}
	c := guest.Command{Nonce: rand.Text(), Limit: cmp.Or(l.limit, runLimit), Name: scenario, Args: args}
	if _, err := io.WriteString(l.machine.stdin, c.Line()); err != nil {
		t.Errorf("cannot tell the machine to run a scenario: %v", err)
		l.showConsole(t)
		l.discard()
		return
	}
	if !l.await(t, c) {
		// Whatever a scenario that failed has left, the next one gets a new machine.
		l.showConsole(t)
		l.discard()
	}
}

// await waits for the end of a scenario and reports whether it has passed.
func (l *Lab) await(t testing.TB, c guest.Command) bool {
	t.Helper()
	limit := time.After(c.Limit + grace)
	for {
		select {
		case e, ok := <-l.machine.events:
			switch {
			case !ok:
				t.Errorf("the machine ended in the midst of the scenario:\n%s", l.machine.noise.String())
				return false
			case e.Nonce != c.Nonce:
				t.Errorf("the machine answers something else: %+v", e)
				return false
			case e.Kind == guest.Log:
				t.Log(e.Text)
			case e.Kind == guest.Pass:
				return true
			default:
				t.Errorf("the scenario failed (%s)", e.Kind)
				return false
			}
		case <-limit:
			t.Errorf("the machine has said nothing of the end of the scenario for %v", c.Limit+grace)
			return false
		}
	}
}

// boot starts a machine; if it does not come up, a second one.
func (l *Lab) boot(t testing.TB) {
	t.Helper()
	for try := range 2 {
		begun := time.Now()
		m, err := l.start()
		if err != nil {
			t.Fatal(err)
		}
		l.machine = m
		version, err := m.awaitReady(cmp.Or(l.patient, bootLimit))
		if err == nil {
			t.Logf("kernel %s is up after %v", version, time.Since(begun).Round(100*time.Millisecond))
			return
		}
		t.Logf("start %d: %v", try+1, err)
		l.showConsole(t)
		l.discard()
	}
	t.Fatalf("the machine does not come up")
}

// start starts QEMU.
func (l *Lab) start() (*machine, error) {
	dir := os.Getenv(LogVariable)
	if dir == "" {
		dir = filepath.Dir(l.archive)
	}
	l.started++
	m := &machine{
		console: filepath.Join(dir, fmt.Sprintf("console-%s-%d.log", l.name, l.started)),
		events:  make(chan guest.Event, 64),
	}
	m.cmd = exec.Command(testgate.Find(qemu), l.args(m.console)...)
	dieWithParent(m.cmd)
	var err error
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.cmd.Stderr = &m.noise
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the machine: %w", err)
	}
	go m.listen(out)
	return m, nil
}

// args is the command line of QEMU: a machine without KVM, which few test hosts have,
// with two serial lines. Devices that are not named are not there: they make the start
// slower.
//
// The processor lacks the feature by which a kernel clears pages byte by byte: where a page
// held code that QEMU has translated, as those of an initramfs with systemd in it, each byte
// costs it so much that a machine may stand still for a minute.
//
// Of all processors only one runs at a time: with "thread=multi" about one start in ten
// ends in an oops, since QEMU may show a processor half of an instruction that the other
// one is patching.
func (l *Lab) args(console string) []string {
	args := []string{
		"-M", "q35", "-cpu", "max,erms=off,fsrm=off", "-accel", "tcg,thread=single", "-smp", strconv.Itoa(cmp.Or(l.cpus, 2)),
		"-m", strconv.Itoa(cmp.Or(l.memory, 1024)),
		"-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "file:" + console, "-serial", "stdio",
		"-kernel", l.kernel.Image, "-initrd", l.archive,
		"-append", strings.TrimSpace("console=ttyS0 quiet panic=-1 no_timer_check " + l.words),
	}
	if l.network {
		args = append(args, "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=")
	}
	if w := l.wire; w.mine != "" {
		args = append(args, "-device", "virtio-net-pci,netdev=n1,romfile=", "-netdev",
			"dgram,id=n1,local.type=unix,local.path="+w.mine+",remote.type=unix,remote.path="+w.other)
	}
	if l.disk != "" {
		args = append(args, "-drive", "if=virtio,format=raw,file="+l.disk)
	}
	return args
}

// listen turns the lines of the agent to events, until QEMU ends.
func (m *machine) listen(out io.Reader) {
	defer close(m.events)
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if e, ok := guest.ParseEvent(line); ok {
			m.events <- e
		} else if err == nil {
			fmt.Fprintf(&m.noise, "not understood: %q\n", line)
		}
		if err != nil {
			break
		}
	}
	if err := m.cmd.Wait(); err != nil {
		fmt.Fprintf(&m.noise, "qemu: %v\n", err)
	}
}

// awaitReady waits until the agent says that it is there, and returns the version of
// the kernel.
func (m *machine) awaitReady(most time.Duration) (string, error) {
	select {
	case e, ok := <-m.events:
		if !ok {
			return "", fmt.Errorf("the machine ended before it was up:\n%s", m.noise.String())
		}
		if e.Kind != guest.Ready {
			return "", fmt.Errorf("the machine begins with %+v", e)
		}
		return e.Text, nil
	case <-time.After(most):
		return "", fmt.Errorf("the machine is not up after %v", most)
	}
}

// discard ends the machine, if there is one.
func (l *Lab) discard() {
	m := l.machine
	if m == nil {
		return
	}
	l.machine = nil
	m.stdin.Close()
	m.cmd.Process.Kill()
	for range m.events { // until it is closed
	}
}

// showConsole shows the end of what the kernel has said.
func (l *Lab) showConsole(t testing.TB) {
	t.Helper()
	text, err := os.ReadFile(l.machine.console)
	if err != nil {
		t.Logf("no console: %v", err)
		return
	}
	const most = 12000
	if len(text) > most {
		text = append([]byte("…"), text[len(text)-most:]...)
	}
	t.Logf("console (%s keeps all of it):\n%s", LogVariable, strings.ReplaceAll(string(text), "\r", ""))
}

// Build builds a program of this module that needs no libraries, for the machine.
func Build(ctx context.Context, pkg, path string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}
