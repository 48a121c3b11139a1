package guest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/test/harness"
)

// Align is what buffers for direct I/O are aligned to, in bytes.
const Align = 4096

// Buffer returns n bytes that direct I/O accepts.
func Buffer(n int) []byte {
	p := make([]byte, n+Align)
	skip := (Align - int(uintptr(unsafe.Pointer(&p[0]))%Align)) % Align
	return p[skip : skip+n : skip+n]
}

// Filled returns a Buffer with n bytes that depend only on the seed.
func Filled(seed uint64, n int) []byte {
	p := Buffer(n)
	copy(p, harness.Random(seed, n))
	return p
}

// Open opens a file or device, with further flags, until the end of the scenario.
func Open(t *T, path string, flags int) *os.File {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Direct opens a device for reading and writing past the kernel's page cache.
func Direct(t *T, path string) *os.File { return Open(t, path, os.O_RDWR|unix.O_DIRECT) }

// Size returns the size of a block device, in bytes.
func Size(t *T, path string) int64 {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Seek(0, io.SeekEnd)
	t.Must(err, "size of "+path)
	return n
}

// WriteAt writes to a device.
func WriteAt(t *T, f *os.File, p []byte, off int64) {
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatalf("write %d bytes at %d: %v", len(p), off, err)
	}
}

// ReadBack reads from a device and compares.
func ReadBack(t *T, f *os.File, want []byte, off int64) {
	got := Buffer(len(want))
	if _, err := f.ReadAt(got, off); err != nil {
		t.Fatalf("read %d bytes at %d: %v", len(got), off, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes at %d of %s are not those that were written", len(want), off, f.Name())
	}
}

// SameContents fails if two files or devices do not hold the same bytes. They are read
// directly where that can be done.
func SameContents(t *T, a, b string) {
	fa, fb := openToRead(t, a), openToRead(t, b)
	defer fa.Close()
	defer fb.Close()
	const step = 1 << 20
	pa, pb := Buffer(step), Buffer(step)
	for off := int64(0); ; off += step {
		na, errA := io.ReadFull(fa, pa)
		nb, errB := io.ReadFull(fb, pb)
		if na != nb || !bytes.Equal(pa[:na], pb[:nb]) {
			t.Fatalf("%s and %s differ in the MiB at %d (%d bytes, %v; %d bytes, %v)", a, b, off, na, errA, nb, errB)
		}
		if errA != nil || errB != nil {
			if end(errA) && end(errB) {
				return
			}
			t.Fatalf("compare %s with %s: %v, %v", a, b, errA, errB)
		}
	}
}

func end(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }

func openToRead(t *T, path string) *os.File {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		f, err = os.Open(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Allocated returns how many bytes a file takes up.
func Allocated(t *T, path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// Empty makes a file of size bytes without data.
func Empty(t *T, path string, size int64) string {
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Must(f.Truncate(size), "make "+path)
	return path
}

// Loop makes a loop device of a file, with a size of sectors in bytes, until the end
// of the scenario.
func Loop(t *T, file string, sector int) string {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	t.Must(err, "loop device")
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	t.Must(err, "free loop device")
	path := fmt.Sprintf("/dev/loop%d", n)
	back, err := os.OpenFile(file, os.O_RDWR, 0)
	t.Must(err, "loop device")
	defer back.Close()
	dev, err := os.OpenFile(path, os.O_RDWR, 0)
	t.Must(err, "loop device")
	defer dev.Close()
	cfg := unix.LoopConfig{Fd: uint32(back.Fd()), Size: uint32(sector)}
	t.Must(unix.IoctlLoopConfigure(int(dev.Fd()), &cfg), "configure "+path)
	t.Cleanup(func() {
		dev, err := os.Open(path)
		t.Must(err, "free loop device")
		defer dev.Close()
		t.Must(unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0), "free "+path)
	})
	return path
}

// Mapper makes a device of the device mapper, until the end of the scenario, and
// returns its path. The lines of the table are as in dmsetup(8). The path is that which
// the kernel makes: there is no udev to make one of the name.
func Mapper(t *T, name string, table ...string) string {
	_, errs, err := harness.Command(t, strings.Join(table, "\n")+"\n",
		"dmsetup", "--noudevsync", "--noudevrules", "create", name)
	if err != nil {
		t.Fatalf("dmsetup create %s: %v\n%s", name, err, errs)
	}
	t.Cleanup(func() {
		harness.Run(t, "dmsetup", "resume", name) // in case it was left suspended
		harness.Run(t, "dmsetup", "--noudevsync", "--noudevrules", "remove", "--retry", name)
	})
	found, err := filepath.Glob("/sys/block/dm-*/dm/name")
	t.Must(err, "mapped devices")
	for _, path := range found {
		if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(path)))
		}
	}
	t.Fatalf("dmsetup made %s, but the kernel has no device of that name", name)
	return ""
}

// Reload gives a mapped device another table.
func Reload(t *T, name string, table ...string) {
	Suspend(t, name)
	defer Resume(t, name)
	if _, errs, err := harness.Command(t, strings.Join(table, "\n")+"\n", "dmsetup", "load", name); err != nil {
		t.Fatalf("dmsetup load %s: %v\n%s", name, err, errs)
	}
}

// BlockOf returns where on its disk a block of a file lies, in blocks of the file
// system.
func BlockOf(t *T, path string, block int) int {
	f, err := os.Open(path)
	t.Must(err, "block of a file")
	defer f.Close()
	n := int32(block)
	const fibmap = 1 // FIBMAP of linux/fs.h
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fibmap, uintptr(unsafe.Pointer(&n))); e != 0 || n == 0 {
		t.Fatalf("block %d of %s: %d, %v", block, path, n, e)
	}
	return int(n)
}

// Suspend makes a mapped device hold back all that comes, until Resume.
func Suspend(t *T, name string) {
	harness.Run(t, "dmsetup", "--noudevsync", "suspend", "--nolockfs", "--noflush", name)
}

// Resume lets a suspended device go on.
func Resume(t *T, name string) { harness.Run(t, "dmsetup", "--noudevsync", "resume", name) }

// Mkfs makes an ext4 file system.
func Mkfs(t *T, dev string, args ...string) {
	harness.Run(t, "mkfs.ext4", append(append([]string{"-q", "-F"}, args...), dev)...)
}

// Fsck checks an ext4 file system, changes nothing, and fails if it is not clean.
func Fsck(t *T, dev string) { harness.Run(t, "e2fsck", "-f", "-n", dev) }

// FS is a kind of file system.
type FS struct {
	Type    string
	Least   int64    // bytes that it needs
	Mkfs    []string // a command; the device follows
	Fsck    []string // one that changes nothing, and fails if it is not clean
	Mount   string   // options
	Trims   bool
	Journal bool // a crash costs nothing that was synced, and fsck finds nothing after a mount
}

// FileSystems returns all kinds that the scenarios use.
func FileSystems() []FS {
	const mib = 1 << 20
	return []FS{
		{Type: "ext4", Least: 64 * mib, Mkfs: []string{"mkfs.ext4", "-q", "-F"}, Fsck: []string{"e2fsck", "-f", "-n"}, Trims: true, Journal: true},
		{Type: "xfs", Least: 320 * mib, Mkfs: []string{"mkfs.xfs", "-q", "-f"}, Fsck: []string{"xfs_repair", "-n"}, Trims: true, Journal: true},
		{Type: "btrfs", Least: 128 * mib, Mkfs: []string{"mkfs.btrfs", "-q", "-f"}, Fsck: []string{"btrfs", "check"}, Trims: true, Journal: true},
		{Type: "vfat", Least: 64 * mib, Mkfs: []string{"mkfs.vfat"}, Fsck: []string{"fsck.vfat", "-n"}, Mount: "iocharset=ascii", Trims: true},
	}
}

// Make makes the file system on a device.
func (f FS) Make(t *T, dev string) { harness.Run(t, f.Mkfs[0], append(f.Mkfs[1:], dev)...) }

// Check checks it, and fails if it is not clean.
func (f FS) Check(t *T, dev string) { harness.Run(t, f.Fsck[0], append(f.Fsck[1:], dev)...) }

// On mounts it, as the function Mount does.
func (f FS) On(t *T, dev string) *Mounted { return mount(t, dev, f.Type, f.Mount) }

// Mounted is a mounted file system.
type Mounted struct {
	t    *T
	Dir  string
	live bool
}

// Mount mounts an ext4 file system, until the end of the scenario at most.
func Mount(t *T, dev, options string) *Mounted { return mount(t, dev, "ext4", options) }

func mount(t *T, dev, kind, options string) *Mounted {
	dir, err := os.MkdirTemp("/mnt", "fs")
	t.Must(err, "mount")
	t.Must(unix.Mount(dev, dir, kind, 0, options), "mount "+dev)
	m := &Mounted{t, dir, true}
	t.Cleanup(m.Unmount)
	return m
}

// Unmount unmounts it, if it is mounted.
func (m *Mounted) Unmount() {
	if m.live {
		m.live = false
		m.t.Must(unix.Unmount(m.Dir, 0), "unmount "+m.Dir)
	}
}

// Blocks returns how many blocks the file system has.
func (m *Mounted) Blocks() uint64 {
	var st unix.Statfs_t
	m.t.Must(unix.Statfs(m.Dir, &st), "statfs")
	return st.Blocks
}

// Sync writes out all that the file system has.
func (m *Mounted) Sync() {
	f, err := os.Open(m.Dir)
	m.t.Must(err, "sync")
	defer f.Close()
	m.t.Must(unix.Syncfs(int(f.Fd())), "sync "+m.Dir)
}

// DropCaches makes the kernel forget what it can read again.
func DropCaches(t *T) {
	unix.Sync()
	t.Must(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0), "drop caches")
}
