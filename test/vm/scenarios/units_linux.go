package scenarios

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// The Debian of the steps "units-…" has this in nbdtab, and mounts all of it but nbd3 at
// boot. A process of its own keeps each, but for nbd1, which nbd-client.service keeps.
//
//	nbd0  a file system, without an identifier
//	nbd1  a partition, auto, identifier=parts
//	nbd2  swap space
//	nbd3  a partition, identifier=spare, to be mounted when somebody asks for it
const (
	unitsData, unitsPart, unitsSpare = "/mnt/data", "/mnt/part", "/mnt/spare"
	// What the first boot writes, and the second finds, in unitsData.
	unitsSeed, unitsFiles = 815, 35
	// UnitsUUID is that of the file system on nbd0.
	UnitsUUID = "6e626430-0000-4000-8000-0000000000ff"
)

// show returns a property of a unit.
func show(t *guest.T, unit, property string) string {
	return strings.TrimSpace(harness.Run(t, "systemctl", "show", "-P", property, unit))
}

// moment returns when something became of a unit, in microseconds since the kernel began.
func moment(t *guest.T, unit, property string) int {
	n, err := strconv.Atoi(show(t, unit, property+"TimestampMonotonic"))
	t.Must(err, property+" of "+unit)
	if n == 0 {
		t.Fatalf("%s has never been: %s", unit, property)
	}
	return n
}

// wantActive wants a unit to be active, or not to be.
func wantActive(t *guest.T, unit string, active bool) {
	want := "inactive"
	if active {
		want = "active"
	}
	if got := show(t, unit, "ActiveState"); got != want {
		out, _, _ := harness.Command(t, "", "systemctl", "status", "--no-pager", "-n", "20", unit)
		t.Errorf("%s is %s, want %s:\n%s", unit, got, want, out)
	}
}

// settle waits until udev has nothing more to do.
func settle(t *guest.T) { harness.Run(t, "udevadm", "settle", "--timeout=60") }

// awaitBoot waits until the system has come up, wholly.
func awaitBoot(t *guest.T) {
	out, _, _ := harness.Command(t, "", "systemctl", "is-system-running", "--wait")
	if strings.TrimSpace(out) != "running" {
		failed, _, _ := harness.Command(t, "", "systemctl", "--no-pager", "--failed")
		journal, _, _ := harness.Command(t, "", "journalctl", "-b", "--no-pager", "-n", "300")
		t.Errorf("the system is %s\n%s\n%s", out, failed, journal)
	}
}

// unitsBoot looks at how the system has come up: what the generator has made, and in which
// order devices were attached and mounted.
func unitsBoot(t *guest.T) {
	awaitBoot(t)
	for _, name := range []string{"dev-nbd0.device.wants", "dev-nbd1p1.device.wants", `dev-disk-by\x2dnbd-spare\x2dpart1.device.wants`} {
		if found, _ := filepath.Glob("/run/systemd/generator/" + strings.ReplaceAll(name, `\`, `\\`) + "/nbd@nbd*.service"); len(found) != 1 {
			t.Errorf("the generator has made no %s", name)
		}
	}
	for _, m := range []struct{ service, mount string }{
		{"nbd@nbd0.service", "mnt-data.mount"}, {"nbd@nbd1.service", "mnt-part.mount"},
	} {
		wantActive(t, m.service, true)
		wantActive(t, m.mount, true)
		order := []int{
			moment(t, "network-online.target", "ActiveEnter"), moment(t, m.service, "InactiveExit"), moment(t, m.service, "ActiveEnter"),
			moment(t, m.mount, "InactiveExit"), moment(t, m.mount, "ActiveEnter"), moment(t, "remote-fs.target", "ActiveEnter"),
		}
		if !slices.IsSorted(order) {
			t.Errorf("online, attaching, attached, mounting, mounted, remote-fs.target: %s came in the order %v", m.mount, order)
		}
	}
	if moment(t, "nbd@nbd2.service", "ActiveEnter") > moment(t, "dev-nbd2.swap", "InactiveExit") {
		t.Error("nbd2 was swapped on before it was ready")
	}
	wantMounted(t, "/dev/nbd0 "+unitsData+" ext4 ", "/dev/nbd1p1 "+unitsPart+" ext4 ", "/dev/nbd2 ")
	wantActive(t, "nbd@nbd3.service", false)
	wantText(t, "nbd0", "/dev/nbd0 nbd://"+guest.HostAddress)
	wantText(t, "nbd1", "/dev/nbd1 parts: kept by process "+show(t, "nbd-client.service", "MainPID"))
}

// wantMounted wants these to be in the system's tables of mounts and of swap space.
func wantMounted(t *guest.T, lines ...string) {
	mounts, err := os.ReadFile("/proc/mounts")
	t.Must(err, "mounts")
	swaps, err := os.ReadFile("/proc/swaps")
	t.Must(err, "swaps")
	for _, want := range lines {
		if !strings.Contains(string(mounts)+string(swaps), want) {
			t.Errorf("%q is missing in\n%s%s", want, mounts, swaps)
		}
	}
}

// wantText wants a text in what the service of a device says of itself.
func wantText(t *guest.T, device, want string) {
	if text := show(t, "nbd@"+device+".service", "StatusText"); !strings.Contains(text, want) {
		t.Errorf("the service of %s says %q, and not %q", device, text, want)
	}
}

// unitsNames looks at the links that udev has made, and for signs that somebody has read
// from a device that was not ready.
func unitsNames(t *guest.T) {
	settle(t)
	uri := "nbd:" + `\x2f\x2f` + guest.HostAddress + ":" + t.Args[0] + `\x2f`
	wantLinks(t, map[string]string{
		"by-nbd/" + uri + "data": "nbd0", "by-nbd/parts": "nbd1", "by-nbd/parts-part1": "nbd1p1", "by-nbd/" + uri + "swap": "nbd2",
		"by-nbd/spare": "", "by-uuid/" + UnitsUUID: "nbd0",
	})
	for device, attached := range map[string]bool{"nbd0": true, "nbd1": true, "nbd3": false, "nbd5": false} {
		wantProbed(t, device, attached)
	}
	wantNoTrouble(t)
}

// wantLinks wants links below /dev/disk to lead to these devices, or not to be.
func wantLinks(t *guest.T, links map[string]string) {
	for link, device := range links {
		to, err := os.Readlink("/dev/disk/" + link)
		switch {
		case device == "" && !os.IsNotExist(err):
			t.Errorf("%s is there: %q, %v", link, to, err)
		case device != "" && filepath.Base(to) != device:
			all, _ := filepath.Glob("/dev/disk/by-nbd/*")
			t.Errorf("%s leads to %q, want %s (%v); there are %q", link, to, device, err, all)
		}
	}
}

// wantProbed wants udev to know a device as ready and to have looked what is on it, or not.
func wantProbed(t *guest.T, device string, ready bool) {
	text := harness.Run(t, "udevadm", "info", "--query=property", "/dev/"+device)
	if hidden := strings.Contains(text, "SYSTEMD_READY=0\n"); hidden == ready {
		t.Errorf("udev says of %s, which is ready: %t\n%s", device, ready, text)
	}
	if probed := strings.Contains(text, "ID_FS_TYPE=") || strings.Contains(text, "ID_PART_TABLE_TYPE="); probed != ready {
		t.Errorf("udev has looked what is on %s: %t; it is ready: %t\n%s", device, probed, ready, text)
	}
	wantActive(t, "dev-"+device+".device", ready)
}

// wantNoTrouble wants the kernel to have seen no errors on the devices.
func wantNoTrouble(t *guest.T) {
	text := harness.Run(t, "dmesg")
	for line := range strings.Lines(text) {
		for _, bad := range []string{"I/O error", "unable to read partition table", "EXT4-fs error", "nbd: failed", "Possible stuck request", "Receive control failed"} {
			if strings.Contains(line, bad) {
				t.Errorf("the kernel says: %s", line)
			}
		}
	}
}

// unitsStart mounts, unmounts, stops and starts the device that nobody needs.
func unitsStart(t *guest.T) {
	const service, mount = "nbd@nbd3.service", "mnt-spare.mount"
	attached := map[string]string{"by-nbd/spare": "nbd3", "by-nbd/spare-part1": "nbd3p1"}
	detached := map[string]string{"by-nbd/spare": "", "by-nbd/spare-part1": ""}
	for _, round := range []struct {
		verb, unit string
		links      map[string]string
		service    bool
		mount      bool
	}{
		{"start", mount, attached, true, true}, // which attaches
		{"stop", mount, attached, true, false},
		{"stop", service, detached, false, false},
		{"start", service, attached, true, false},
		{"restart", service, attached, true, false},
		{"stop", service, detached, false, false},
	} {
		harness.Run(t, "systemctl", round.verb, round.unit)
		settle(t)
		wantActive(t, service, round.service)
		wantActive(t, mount, round.mount)
		wantLinks(t, round.links)
		wantProbed(t, "nbd3", round.service)
		if t.Failed() {
			journal, _, _ := harness.Command(t, "", "journalctl", "-b", "--no-pager", "-n", "60")
			t.Fatalf("after %s %s:\n%s", round.verb, round.unit, journal)
		}
	}
	harness.Run(t, "nbd-client", "wait", "nbd3", "gone", "--timeout=30")
	wantNoTrouble(t)
}

// unitsRestart restarts the services while files are written on what they keep.
func unitsRestart(t *guest.T) {
	renewed(t, func(unit string) { harness.Run(t, "systemctl", "restart", unit) })
}

// unitsKill kills their processes.
func unitsKill(t *guest.T) {
	renewed(t, func(unit string) {
		pid, err := strconv.Atoi(show(t, unit, "MainPID"))
		t.Must(err, "process of "+unit)
		t.Must(unix.Kill(pid, unix.SIGKILL), "kill "+unit)
		t.AwaitFor(time.Minute, unit+" runs again", func() bool {
			return show(t, unit, "ActiveState") == "active" && show(t, unit, "MainPID") != strconv.Itoa(pid)
		})
	})
}

// renewed has renew put new processes in the place of those that keep the devices. All that
// the old ones had, the new ones have: nothing is connected anew, and no mount notices.
func renewed(t *guest.T, renew func(unit string)) {
	devices := map[string]string{"nbd@nbd0.service": "nbd0", "nbd-client.service": "nbd1", "nbd@nbd2.service": "nbd2"}
	tree := guest.WriteTree(t, unitsData+"/tree", unitsSeed, unitsFiles)
	mounted := moment(t, "mnt-data.mount", "ActiveEnter")
	writers := []*fileWriter{writeFiles(t, unitsData), writeFiles(t, unitsPart)}
	for unit, device := range devices {
		before, pid := keptState(t, device), show(t, unit, "MainPID")
		if before.Process.PID != mustNumber(t, pid) || before.Phase != "attached" {
			t.Errorf("%s is %s, and kept by process %d, not by %s of %s", device, before.Phase, before.Process.PID, pid, unit)
		}
		renew(unit)
		now := mustNumber(t, show(t, unit, "MainPID"))
		t.Await("the new process keeps "+device, func() bool { return keptState(t, device).Process.PID == now })
		after := keptState(t, device)
		if now == before.Process.PID || after.Reconnects != before.Reconnects || len(after.Connections) != 1 || !after.Connections[0].Held {
			journal, _, _ := harness.Command(t, "", "journalctl", "-b", "--no-pager", "-n", "60")
			t.Errorf("%s did not pass on the connections of %s: %+v, then %+v\n%s", unit, device, before, after, journal)
		}
		for _, w := range writers {
			w.progress(t)
		}
	}
	for _, w := range writers {
		w.verify(t)
	}
	guest.DropCaches(t)
	tree.Verify(t, unitsData+"/tree")
	if moment(t, "mnt-data.mount", "ActiveEnter") != mounted {
		t.Error("the file system was mounted anew")
	}
	want := "kept by process " + show(t, "nbd-client.service", "MainPID")
	t.Await("the other service of nbd1 says who keeps it", func() bool {
		return strings.Contains(show(t, "nbd@nbd1.service", "StatusText"), want)
	})
	settle(t)
	wantLinks(t, map[string]string{"by-nbd/parts": "nbd1", "by-nbd/parts-part1": "nbd1p1"})
	wantNoTrouble(t)
}

func mustNumber(t *guest.T, text string) int {
	n, err := strconv.Atoi(text)
	t.Must(err, "number")
	return n
}

// keptState reads the state file of a device.
func keptState(t *guest.T, device string) (s struct {
	Phase      string `json:"state"`
	Reconnects int    `json:"reconnects"`
	Process    struct {
		PID int `json:"pid"`
	} `json:"process"`
	Connections []struct {
		Held bool `json:"held"`
	} `json:"connections"`
}) {
	text, err := os.ReadFile("/run/nbd/" + device + ".json")
	t.Must(err, "state of "+device)
	t.Must(json.Unmarshal(text, &s), "state of "+device)
	return s
}

// fileWriter writes files and makes each stable, one after the other.
type fileWriter struct {
	dir  string
	done atomic.Int64
	stop func()
	err  error // valid when it has stopped
}

// writeFiles starts one, which ends with the scenario at the latest.
func writeFiles(t *guest.T, mount string) *fileWriter {
	w := &fileWriter{dir: filepath.Join(mount, "written")}
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; w.err == nil; n++ {
			select {
			case <-quit:
				return
			default:
			}
			w.err = syncedWrite(w.path(n), w.data(n))
			w.done.Store(int64(n + 1))
		}
	})
	w.stop = sync.OnceFunc(func() { close(quit); wg.Wait() })
	t.Cleanup(w.stop)
	return w
}

// writtenFiles is how many there are at most: then the first one is written anew.
const writtenFiles = 100

func (w *fileWriter) path(n int) string {
	return filepath.Join(w.dir, fmt.Sprintf("f%d", n%writtenFiles))
}
func (w *fileWriter) data(n int) []byte { return harness.Random(uint64(n), 5_000+n%1000) }

// progress waits until some more files were written.
func (w *fileWriter) progress(t *guest.T) {
	goal := w.done.Load() + 3
	t.AwaitFor(2*time.Minute, "files are written in "+w.dir, func() bool { return w.done.Load() >= goal })
}

// verify stops it, and reads what it has written.
func (w *fileWriter) verify(t *guest.T) {
	w.stop()
	if w.err != nil {
		t.Fatalf("write: %v", w.err)
	}
	guest.DropCaches(t)
	done := int(w.done.Load())
	for n := max(0, done-writtenFiles); n < done; n++ {
		harness.Same(t, w.path(n), w.data(n))
	}
	t.Logf("%d files were made stable in %s", done, w.dir)
}

// unitsLeave leaves a device to nbd-client.service that nobody uses, and that no unit is
// about: it is detached all the same when the system goes down.
func unitsLeave(t *guest.T) {
	uri := fmt.Sprintf("nbd://%s:%s/left", guest.HostAddress, t.Args[0])
	if out := harness.Run(t, "nbd-client", uri, "/dev/nbd7"); out != "/dev/nbd7\n" {
		t.Errorf("nbd-client says %q", out)
	}
	if pid := mustNumber(t, show(t, "nbd-client.service", "MainPID")); keptState(t, "nbd7").Process.PID != pid {
		t.Errorf("%+v is not kept by the service, process %d", keptState(t, "nbd7"), pid)
	}
}

// unitsLate looks at a system that has come up without nbd-client.service, and whose server
// was there later.
func unitsLate(t *guest.T) {
	awaitBoot(t)
	wantMounted(t, "/dev/nbd0 "+unitsData+" ext4 ", "/dev/nbd1p1 "+unitsPart+" ext4 ")
	wantActive(t, "nbd-client.service", false)
	// Without it mounts would not be undone before the devices are detached.
	wantActive(t, "remote-fs-pre.target", true)
	wantText(t, "nbd1", "/dev/nbd1 parts: attached")
	tree := guest.Tree{}
	for i := range unitsFiles {
		name, data := guest.TreeFile(unitsSeed, i)
		tree.Note(name, data)
	}
	tree.Verify(t, unitsData+"/tree")
}

// unitsOrphans stops the service of a device that is mounted: the device stays, and the
// next process takes it over.
func unitsOrphans(t *guest.T) {
	const service = "nbd@nbd0.service"
	harness.Run(t, "systemctl", "stop", service)
	if state := show(t, service, "ActiveState"); state != "failed" {
		t.Errorf("%s is %s, though its device is still attached", service, state)
	}
	if out, _, _ := harness.Command(t, "", "nbd-client", "status", "nbd0"); !strings.Contains(out, "orphaned") {
		t.Errorf("status: %s", out)
	}
	w := writeFiles(t, unitsData)
	w.progress(t)
	harness.Run(t, "systemctl", "start", service)
	wantText(t, "nbd0", ": attached")
	w.progress(t)
	w.verify(t)
	wantNoTrouble(t)
}
