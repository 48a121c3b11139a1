package scenarios

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/supervise"
	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// Where the files of the scenarios are, and from which seed.
const (
	rootDir  = "/var/lib/vm"
	rootSeed = 4711
)

// rootPID returns the number of the process that keeps the root's device.
func rootPID(t *guest.T) int {
	status, err := os.ReadFile("/proc/" + guest.Attr(t, "nbd0", "pid") + "/status") // of a thread
	t.Must(err, "process of the root's device")
	_, rest, _ := strings.Cut(string(status), "\nTgid:")
	line, _, _ := strings.Cut(rest, "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	t.Must(err, "process of the root's device")
	return pid
}

// rootLook looks at the system and at the client that keeps its root.
func rootLook(t *guest.T) {
	mounts, err := os.ReadFile("/proc/mounts")
	t.Must(err, "mounts")
	if !strings.Contains(string(mounts), "/dev/nbd0 / ext4 rw") {
		t.Errorf("the root is not on /dev/nbd0:\n%s", mounts)
	}
	pid := rootPID(t)
	proc := fmt.Sprintf("/proc/%d/", pid)
	read := func(name string) string {
		text, err := os.ReadFile(proc + name)
		t.Must(err, "look at the client")
		return string(text)
	}
	if line := read("cmdline"); !strings.HasPrefix(line, "@") {
		t.Errorf("the client's name is %q, which systemd would not spare", line)
	}
	if got := strings.TrimSpace(read("oom_score_adj")); got != "-1000" {
		t.Errorf("the client's out-of-memory score is %s", got)
	}
	if status := read("status"); strings.Contains(status, "VmLck:\t       0 kB") {
		t.Error("the client's memory is not locked")
	}
	if root, err := os.Readlink(proc + "root"); err != nil || root != "/run/initramfs/nbd" {
		t.Errorf("the client's root is %s, %v", root, err)
	}
	if spare, err := os.ReadFile("/run/sendsigs.omit.d/nbd-root"); err != nil || strings.TrimSpace(string(spare)) != strconv.Itoa(pid) {
		t.Errorf("sysvinit is to spare %q (%v), and not %d", spare, err, pid)
	}
	want, err := strconv.Atoi(t.Args[0])
	t.Must(err, "number of connections")
	if n := len(rootState(t).Connections); n != want {
		t.Errorf("the root has %d connections, want %d", n, want)
	}
	harness.Run(t, "nbd-client", "status", "/dev/nbd0")
	rootStays(t)
}

// rootStays wants the root not to be detached without force, neither by the command nor by
// the client that keeps it, in whose root it is not mounted.
func rootStays(t *guest.T) {
	out, err := exec.Command("nbd-client", "detach", "nbd0").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "mounted on /") {
		t.Errorf("detach of the root: %v, %s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := supervise.Dial(ctx, rootState(t).Control)
	t.Must(err, "control socket of the client")
	defer c.Close()
	var busy *supervise.BusyError
	if err := c.Detach(ctx, 0, false); !errors.As(err, &busy) {
		t.Errorf("the client of the root is to detach it: %v", err)
	}
	guest.DropCaches(t)
	harness.Run(t, "ls", "/usr/share")
}

// state is what the client tells of a device, as far as it is needed here.
type state struct {
	Phase       string `json:"state"`
	Control     string `json:"control"`
	Reconnects  int    `json:"reconnects"`
	Connections []struct {
		Alive bool `json:"alive"`
	} `json:"connections"`
}

// rootState reads it. The client is in another root, and its folder must be this one.
func rootState(t *guest.T) (s state) {
	text, err := os.ReadFile("/run/nbd/nbd0.json")
	t.Must(err, "state of the root's device")
	t.Must(json.Unmarshal(text, &s), "state of the root's device")
	return s
}

// rootWork writes files while the server is restarted, until the client has connected anew
// as often as the argument says; the first files stay for rootVerify.
func rootWork(t *guest.T) {
	// The client was told not to mind.
	t.Must(unix.Kill(rootPID(t), unix.SIGTERM), "SIGTERM to the client")
	want, err := strconv.Atoi(t.Args[0])
	t.Must(err, "number of reconnects")
	t.Must(os.MkdirAll(rootDir, 0o755), "folder")
	tree := guest.WriteTree(t, rootDir, rootSeed, 105)
	unix.Sync()
	n := 0
	for ; n < 40 || rootState(t).Reconnects < want; n++ {
		name := fmt.Sprintf("synced/f%d", n%200)
		t.Must(syncedWrite(filepath.Join(rootDir, name), harness.Random(uint64(n), 20_000+n%1000)), name)
		tree.Note(name, harness.Random(uint64(n), 20_000+n%1000))
	}
	t.Await("all connections are alive", func() bool { return rootState(t).Phase == "attached" })
	guest.DropCaches(t)
	tree.Verify(t, rootDir)
	t.Logf("%d files were made stable, the server came back %d times", n, rootState(t).Reconnects)
	t.Must(os.RemoveAll(filepath.Join(rootDir, "synced")), "remove")
}

// syncedWrite writes a file and makes it stable.
func syncedWrite(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// rootVerify finds what rootWork has left, in an earlier life of the machine.
func rootVerify(t *guest.T) {
	tree := guest.Tree{}
	for i := range 105 {
		name, data := guest.TreeFile(rootSeed, i)
		tree.Note(name, data)
	}
	tree.Verify(t, rootDir)
}
