package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// linePath is the serial line between the agent and the test outside.
const linePath = "/dev/ttyS1"

// Scenario is a test that runs in the machine.
type Scenario struct {
	Name   string   // without spaces; it is also the name of the subtest outside
	Series []string // the series of kernels that it runs on
	Run    func(*T)
	// Host, if not nil, runs before, outside of the machine, and may start what the
	// scenario needs there. What it returns are the scenario's Args.
	Host func(testing.TB) []string
	// Programs of the host that only this scenario needs. It gets a machine of its own.
	Programs []string
	// Main are the series that CI runs it on, if they are not all of Series. On the others
	// it runs when -run names it, or NBD_TEST_RUN the rest.
	Main []string
	// Long scenarios take longer than CI has: it runs them on none.
	Long bool
}

// agent runs scenarios, one at a time.
type agent struct {
	scenarios []Scenario
	leftovers func(*T)   // fails a scenario that has left something behind; or nil
	mu        sync.Mutex // for writing
	w         io.Writer
}

// Agent runs the scenarios that the test outside asks for, until that one hangs up.
func Agent(scenarios []Scenario) error { return serveLine(scenarios, leftovers) }

// AgentOfSystem is Agent in a machine that runs a whole system, whose processes and
// mounts are none of a scenario's doing.
func AgentOfSystem(scenarios []Scenario) error { return serveLine(scenarios, nil) }

// serveLine is Agent. Each scenario is followed by leftovers, if that is not nil.
func serveLine(scenarios []Scenario, leftovers func(*T)) error {
	line, err := os.OpenFile(linePath, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	if err := makeRaw(int(line.Fd())); err != nil {
		return fmt.Errorf("%s: %w", linePath, err)
	}
	a := &agent{scenarios: scenarios, leftovers: leftovers, w: line}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	a.emit(Event{Kind: Ready, Text: unix.ByteSliceToString(name.Release[:])})
	r := bufio.NewReader(line)
	for {
		text, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c, err := ParseCommand(text)
		if err != nil {
			return err
		}
		a.run(c)
	}
}

// makeRaw makes a serial line pass bytes as they are, without echo.
func makeRaw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

func (a *agent) emit(e Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.w.Write(e.Line()) // nobody could be told of a failure
}

// run runs a scenario and reports how it ended.
func (a *agent) run(c Command) {
	t := &T{Args: c.Args, agent: a, nonce: c.Nonce, name: c.Name}
	i := slices.IndexFunc(a.scenarios, func(s Scenario) bool { return s.Name == c.Name })
	if i < 0 {
		t.Errorf("the machine knows no scenario %q", c.Name)
		a.emit(Event{Kind: Fail, Nonce: c.Nonce})
		return
	}
	console("begin " + c.Name)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.call(a.scenarios[i].Run)
		t.cleanup()
		if a.leftovers != nil {
			t.call(a.leftovers)
		}
	}()
	select {
	case <-done:
	case <-time.After(c.Limit):
		t.stuck(c.Limit)
	}
	console("end " + c.Name)
	kind := Pass
	if t.Failed() {
		kind = Fail
	}
	a.emit(Event{Kind: kind, Nonce: c.Nonce})
}

// console puts a line into the kernel's log, so that the console shows what was when.
func console(text string) {
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		fmt.Fprintf(f, "vm: %s\n", text)
		f.Close()
	}
}

// stuck fails a scenario that does not end, and shows where it is.
func (t *T) stuck(limit time.Duration) {
	stacks := make([]byte, 64<<10)
	stacks = stacks[:runtime.Stack(stacks, true)]
	t.Errorf("not ended in %v:\n%s", limit, stacks)
	// Blocked tasks, to the console.
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0); err != nil {
		t.Logf("ask for blocked tasks: %v", err)
	}
}
