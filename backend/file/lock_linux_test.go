package file_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/internal/testgate"
)

const inUse = "device or resource busy: a virtual machine or another program uses the image for itself; stop it, or override with the parameter force"

// qcow2 makes an image in QEMU's own format, which nobody else may write while it
// is open.
func qcow2(t *testing.T) string {
	t.Helper()
	testgate.Requires(t, testgate.Program("qemu-img", "qemu-io"))
	path := image(t, onDisk(t), 0)
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "1M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	return path
}

// hold has qemu-io open an image until the function it returns is called.
func hold(t *testing.T, args ...string) (release func()) {
	t.Helper()
	c := exec.Command("qemu-io", args...)
	in, err := c.StdinPipe()
	must(t, err)
	out, err := c.StdoutPipe()
	must(t, err)
	c.Stderr = os.Stderr
	must(t, c.Start())
	release = func() {
		in.Close()
		c.Wait()
	}
	t.Cleanup(release)
	// When it has read, it has its locks.
	if _, err := io.WriteString(in, "read 0 512\n"); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "read 512/512") {
			go io.Copy(io.Discard, out)
			return release
		}
	}
	t.Fatalf("qemu-io %q did not read", args)
	return nil
}

// locks returns the single bytes of the file that anybody has locked.
func locks(t *testing.T, path string) (list []int64) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	b, err := os.ReadFile("/proc/locks")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		var number, kind, mode, access, place string
		var pid, first, last int64
		if _, err := fmt.Sscan(line, &number, &kind, &mode, &access, &pid, &place, &first, &last); err != nil {
			continue // a lock to the end of a file
		}
		if strings.HasSuffix(place, fmt.Sprint(":", st.Ino)) && kind == "OFDLCK" {
			for at := first; at <= last; at++ {
				list = append(list, at)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// TestRefusedByLock opens what a virtual machine has open.
func TestRefusedByLock(t *testing.T) {
	path := qcow2(t)
	release := hold(t, "-f", "qcow2", path)
	held := locks(t, path)
	for _, at := range []int64{100, 101, 201, 203} { // reads, writes; nobody else writes or resizes
		if !slices.Contains(held, at) {
			t.Errorf("QEMU has locked %v, not %d", held, at)
		}
	}
	for _, readOnly := range []bool{false, true} {
		_, err := file.Open(file.Config{Path: path, ReadOnly: readOnly})
		if err == nil || err.Error() != "open "+path+": "+inUse || !errors.Is(err, syscall.EBUSY) {
			t.Errorf("read-only %t: error %v", readOnly, err)
		}
		if got := locks(t, path); !slices.Equal(got, held) {
			t.Errorf("read-only %t: locked are %v after a failed opening, %v before", readOnly, got, held)
		}
		f, err := file.Open(file.Config{Path: path, ReadOnly: readOnly, Force: true})
		must(t, err)
		must(t, f.Close())
	}
	release()
	f, err := file.Open(file.Config{Path: path})
	must(t, err)
	must(t, f.Close())
}

// TestReadWithOthers reads what another server writes, and what a virtual machine
// reads.
func TestReadWithOthers(t *testing.T) {
	path := qcow2(t)
	read := func() {
		t.Helper()
		f, err := file.Open(file.Config{Path: path, ReadOnly: true})
		must(t, err)
		must(t, f.Close())
	}
	f, err := file.Open(file.Config{Path: path})
	must(t, err)
	read()
	must(t, f.Close())
	release := hold(t, "-f", "raw", path) // as another server: it shares all
	if got := locks(t, path); !slices.Equal(got, []int64{100, 101}) {
		t.Errorf("QEMU has locked %v", got)
	}
	read()
	release()
	hold(t, "-r", "-f", "qcow2", path)
	if got := locks(t, path); !slices.Contains(got, 201) || slices.Contains(got, 101) {
		t.Errorf("QEMU has locked %v", got)
	}
	read()
}

// TestRefusesByLock has QEMU's programs open what is served.
func TestRefusesByLock(t *testing.T) {
	path := qcow2(t)
	run := func(wants bool, name string, args ...string) {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		switch {
		case wants && err != nil:
			t.Errorf("%s %q: %v\n%s", name, args, err, out)
		case !wants && (err == nil || !strings.Contains(string(out), "lock")):
			t.Errorf("%s %q: error %v, want one about locks\n%s", name, args, err, out)
		}
	}
	f, err := file.Open(file.Config{Path: path})
	must(t, err)
	if got := locks(t, path); !slices.Equal(got, []int64{100, 101}) {
		t.Errorf("for writing, the bytes %v are locked", got)
	}
	run(false, "qemu-io", "-f", "qcow2", "-c", "read 0 512", path)
	run(false, "qemu-io", "-r", "-f", "qcow2", "-c", "read 0 512", path)
	run(false, "qemu-img", "info", path)
	run(true, "qemu-img", "info", "-U", path)
	must(t, f.Close())
	run(true, "qemu-io", "-f", "qcow2", "-c", "write 0 512", path)
	f, err = file.Open(file.Config{Path: path, ReadOnly: true})
	must(t, err)
	if got := locks(t, path); !slices.Equal(got, []int64{100}) {
		t.Errorf("for reading, the bytes %v are locked", got)
	}
	run(true, "qemu-io", "-f", "qcow2", "-c", "write 0 512", path)
	must(t, f.Close())
	f, err = file.Open(file.Config{Path: path, Force: true})
	must(t, err)
	if got := locks(t, path); len(got) != 0 {
		t.Errorf("by force, the bytes %v are locked", got)
	}
	must(t, f.Close())
}

// TestShared opens one image twice, in one process, as two servers would.
func TestShared(t *testing.T) {
	path := image(t, onDisk(t), 1<<20)
	_, a := open(t, file.Config{Path: path})
	_, b := open(t, file.Config{Path: path})
	ctx := context.Background()
	must(t, a.WriteAt(ctx, []byte{7}, 1000, 0))
	p := make([]byte, 1)
	if must(t, b.ReadAt(ctx, p, 1000)); p[0] != 7 {
		t.Errorf("the other reads %d", p[0])
	}
}

// TestGrowthRefused grows what a program that shares all but its size has open.
func TestGrowthRefused(t *testing.T) {
	path := image(t, onDisk(t), 1<<20)
	other, err := os.Open(path)
	must(t, err)
	defer other.Close()
	must(t, unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 203, Len: 1}))
	open(t, file.Config{Path: path})
	_, err = file.Open(file.Config{Path: path, Size: 2 << 20})
	if err == nil || err.Error() != "open "+path+": "+inUse {
		t.Errorf("error %v", err)
	}
	info, err := os.Stat(path)
	must(t, err)
	if info.Size() != 1<<20 {
		t.Errorf("the file has %d bytes", info.Size())
	}
	open(t, file.Config{Path: path, Size: 2 << 20, Force: true})
}
