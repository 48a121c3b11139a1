package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// AgentWord is the argument by which init knows that it is the agent.
const AgentWord = "agent"

// SystemAgentWord is the argument by which it knows that it is the agent in a system that
// it has not booted.
const SystemAgentWord = "system-agent"

// life is how long a machine may run. It is for machines that nobody ends.
const life = 3 * time.Hour

// Environment is that of every program in the machine.
var Environment = []string{
	"PATH=/bin:/sbin", "LD_LIBRARY_PATH=/lib/vm", "HOME=/", "TERM=dumb",
	"NBD_TEST_SERVER=/bin/nbd-server", "TMPDIR=/tmp",
}

// Boot is the first process: it makes a system of the bare kernel, starts the agent,
// and waits for everything that ends. When the agent ends, so does the machine. It does
// not return.
func Boot() {
	fmt.Println("init:", boot())
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // which ends QEMU, as it is told to
	fmt.Println("init: restart:", err)
	select {}
}

// boot returns why the machine has to end.
func boot() error {
	time.AfterFunc(life, func() {
		fmt.Println("init: the machine has run for", life)
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	})
	if err := mountAll(); err != nil {
		return err
	}
	plan, err := readPlan()
	if err != nil {
		return err
	}
	for _, m := range plan.Modules {
		if m.Lazy {
			continue
		}
		if err := m.load(); err != nil {
			return err
		}
	}
	if err := network(plan); err != nil {
		return err
	}
	cmd := exec.Command("/init", AgentWord)
	cmd.Env = Environment
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the agent: %w", err)
		case pid == cmd.Process.Pid:
			return fmt.Errorf("the agent has ended: %#x", status)
		}
	}
}

// mountAll mounts what every system has, and folders in memory.
func mountAll() error {
	for _, m := range [][3]string{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", ""},
		{"tmpfs", "/tmp", "mode=1777"}, {"tmpfs", "/run", ""}, {"tmpfs", "/mnt", ""},
	} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, m[2]); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m[0], m[1], err)
		}
	}
	// From here on the console has all that the kernel says.
	return os.WriteFile("/proc/sys/kernel/printk", []byte("8"), 0)
}

func readPlan() (*Plan, error) {
	text, err := os.ReadFile(PlanPath)
	if err != nil {
		return nil, err
	}
	var p Plan
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, fmt.Errorf("%s: %w", PlanPath, err)
	}
	return &p, nil
}

func (m *Module) load() error {
	f, err := os.Open(ModulePath(m.Name))
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), m.Options, 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s %q: %w", m.Name, m.Options, err)
	}
	return nil
}

// Modprobe loads the module that the kernel asks for by a name or an alias, and what it
// needs. The kernel asks also for many that nobody has.
func Modprobe(args []string) error {
	args = slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") })
	plan, err := readPlan()
	if err != nil || len(args) == 0 {
		return err
	}
	want := strings.ReplaceAll(args[0], "-", "_")
	for _, m := range plan.Modules {
		match := func(alias string) bool {
			ok, _ := path.Match(strings.ReplaceAll(alias, "-", "_"), want)
			return ok
		}
		if m.Name == want || slices.ContainsFunc(m.Aliases, match) {
			return plan.load(m.Name)
		}
	}
	return fmt.Errorf("no module %s", args[0])
}

// load loads a module and those that it needs, which stand before it in the plan.
func (p *Plan) load(name string) error {
	for _, m := range p.Modules {
		if m.Name != name {
			continue
		}
		for _, d := range m.Depends {
			if err := p.load(strings.ReplaceAll(d, "-", "_")); err != nil {
				return err
			}
		}
		return m.load()
	}
	return nil // built in
}

// HostAddress is the host, seen from a machine with a network: what is sent there
// arrives on the host's loopback interface.
const HostAddress = "10.0.2.2"

// network switches the interfaces on. The loopback one gets its address by that; the
// other one has that which QEMU has set aside for it.
func network(plan *Plan) error {
	commands := []string{"link set lo up"}
	if plan.Network {
		commands = append(commands, "addr add 10.0.2.15/24 dev eth0", "link set eth0 up")
	}
	for _, c := range commands {
		cmd := exec.Command("/bin/busybox", append([]string{"ip"}, strings.Fields(c)...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w\n%s", c, err, out)
		}
	}
	return nil
}
