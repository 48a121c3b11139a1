package testgate

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// DiskDir returns a folder on a file system that can do everything: ext4, xfs or btrfs,
// at the folder for temporary files or at /var/tmp. Where there is none it makes one on a
// loop device, which needs what [Mounted] needs, and mkfs.ext4.
func DiskDir(t testing.TB) string {
	t.Helper()
	for _, dir := range []string{t.TempDir(), "/var/tmp"} {
		switch magic(dir) {
		case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
			return below(t, dir)
		}
	}
	return newDisk(t)
}

// newDisk makes an ext4 of its own, for the time of the test.
func newDisk(t testing.TB) string {
	t.Helper()
	Requires(t, Root(), Loop(), Program("mkfs.ext4", "mount"))
	image, dir := filepath.Join(t.TempDir(), "ext4"), t.TempDir()
	for _, args := range [][]string{
		{"truncate", "-s", "1G", image},
		{"mkfs.ext4", "-q", "-F", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(Find(args[0]), args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// MemoryDir returns a folder on a tmpfs: at /dev/shm, or one of its own.
func MemoryDir(t testing.TB) string {
	t.Helper()
	if magic("/dev/shm") == unix.TMPFS_MAGIC {
		return below(t, "/dev/shm")
	}
	return Mounted(t, "tmpfs", "")
}

// Mounted mounts a file system that lives in memory, for the time of the test.
func Mounted(t testing.TB, kind, options string) string {
	t.Helper()
	dir := t.TempDir()
	Requires(t, Root(), Own("root", func() string {
		if err := unix.Mount("none", dir, kind, 0, options); err != nil {
			return "needs to mount a " + kind + ": " + err.Error()
		}
		return ""
	}))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func magic(dir string) uint32 {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0
	}
	return uint32(s.Type)
}

// below makes a folder for the time of the test.
func below(t testing.TB, dir string) string {
	t.Helper()
	dir, err := os.MkdirTemp(dir, "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
