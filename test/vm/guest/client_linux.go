package guest

import (
	"fmt"
	"os"
	"strconv"

	"nbd.example/nbd/test/harness"
)

// Keep says how our nbd-client attaches a kernel device and keeps it.
type Keep struct {
	URIs        []string
	Connections int // 1 if 0
	Args        []string
}

// Keeper is our nbd-client at work, in the foreground, and the kernel device that it
// keeps.
type Keeper struct {
	*Kernel
	*harness.Process
	t *T
}

// Do attaches the device of that number, and waits until it is there. At the end of the
// scenario it is detached, and the program must end with success.
func (a Keep) Do(t *T, number int) *Keeper {
	k := a.Start(t, number)
	k.Ready()
	return k
}

// Start is Do without the waiting.
func (a Keep) Start(t *T, number int) *Keeper {
	name := fmt.Sprintf("nbd%d", number)
	k := &Keeper{t: t, Kernel: &Kernel{t: t, Name: name, Path: "/dev/" + name, live: true}}
	args := append([]string{"-n", "-C", strconv.Itoa(max(a.Connections, 1))}, a.Args...)
	k.Process = harness.Spawn(t, nil, ClientPath, append(append(args, a.URIs...), k.Path)...)
	t.Cleanup(k.Detach)
	return k
}

// Ready waits until the device is there.
func (k *Keeper) Ready() {
	harness.Run(k.t, ClientPath, "wait", k.Path, "ready", "--timeout=60")
	if k.Attr("size") == "0" {
		k.t.Errorf("%s is said to be ready, and has no size", k.Path)
	}
}

// Detach detaches the device, if it is attached, and waits until the program has ended.
func (k *Keeper) Detach() {
	if !k.live {
		return
	}
	k.live = false
	harness.Run(k.t, ClientPath, "detach", k.Path)
	if _, err := os.Stat("/sys/block/" + k.Name + "/pid"); err == nil {
		k.t.Errorf("%s is still attached after it was detached", k.Path)
	}
	if err := k.Process.Wait(); err != nil {
		k.t.Errorf("nbd-client ended by: %v", err)
	}
}

// Gone says that the device was detached by other means.
func (k *Keeper) Gone() { k.live = false }
