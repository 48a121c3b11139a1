package file_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/windows"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/block/blocktest"
)

// diskVariable names a disk or a volume whose contents the tests may destroy, and
// that has at least 4 MiB.
const diskVariable = "NBD_TEST_RAW_DISK"

func TestConformanceWindows(t *testing.T) {
	t.Run("Direct", func(t *testing.T) {
		x := target(t.TempDir(), file.Config{Direct: true})
		x.SizeUnit = 4096
		blocktest.Run(t, x)
	})
}

// TestShareMode opens images that others do not share, and has others want an
// image that is open.
func TestShareMode(t *testing.T) {
	path := image(t, t.TempDir(), 4096)
	p, err := windows.UTF16PtrFromString(path)
	must(t, err)
	alone := func() (windows.Handle, error) { // as QEMU opens an image
		return windows.CreateFile(p, windows.GENERIC_READ|windows.GENERIC_WRITE, windows.FILE_SHARE_READ, nil, windows.OPEN_EXISTING, 0, 0)
	}
	h, err := alone()
	must(t, err)
	_, err = file.Open(file.Config{Path: path})
	if !errors.Is(err, windows.ERROR_SHARING_VIOLATION) || !strings.Contains(err.Error(), "stop it") {
		t.Errorf("an image that is in use: %v", err)
	}
	must(t, windows.CloseHandle(h))

	f, err := file.Open(file.Config{Path: path})
	must(t, err)
	if h, err = alone(); err == nil {
		windows.CloseHandle(h)
		t.Error("an image that is served for writing can be had alone")
	}
	again, err := file.Open(file.Config{Path: path})
	must(t, err) // several servers may
	must(t, again.Close())
	must(t, f.Close())
	h, err = alone()
	must(t, err)
	must(t, windows.CloseHandle(h))
}

// TestErrorsWindows opens what cannot be opened.
func TestErrorsWindows(t *testing.T) {
	dir := t.TempDir()
	path := image(t, dir, 4096)
	must(t, os.Chmod(path, 0o400))
	if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil {
		f.Close()
		t.Log("files are not protected from us; we may be root in wine")
	} else if _, err := file.Open(file.Config{Path: path}); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "serve it read-only") {
		t.Errorf("a write-protected file: %v", err)
	}
	f, err := file.Open(file.Config{Path: path, ReadOnly: true})
	must(t, err)
	must(t, f.Close())
	must(t, os.Chmod(path, 0o600))

	_, err = file.Open(file.Config{Path: `\\.\NoSuchDisk7`})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a disk that is not there: %v", err)
	}
	_, err = file.Open(file.Config{Path: `\\.\NUL`})
	if err == nil {
		t.Error("the device that swallows everything was taken for a disk")
	}
}

// TestRawDisk uses a disk by its name, in sectors. The size is named, since not
// every system tells it.
func TestRawDisk(t *testing.T) {
	path := os.Getenv(diskVariable)
	if path == "" {
		t.Skipf("needs a disk that may be overwritten, named by %s", diskVariable)
	}
	const size = 4 << 20
	c := file.Config{Path: path, Size: size}
	f, d := open(t, c)
	if got := f.Caps(); got.Size != size || got.BlockSize.Minimum < 512 {
		t.Errorf("it has %d bytes in blocks of %d, want %d in sectors", got.Size, got.BlockSize.Minimum, int64(size))
	}
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i>>8) ^ byte(i*7)
	}
	must(t, d.WriteAt(t.Context(), want, 0, 0))
	copy(want[1000:], "not a whole sector")
	must(t, d.WriteAt(t.Context(), want[1000:1018], 1000, 0))
	must(t, d.WriteZeroes(t.Context(), 5000, 100000, 0))
	clear(want[5000:105000])
	must(t, d.Flush(t.Context()))
	must(t, d.Close())

	c.ReadOnly = true
	_, d = open(t, c)
	got := make([]byte, size)
	must(t, d.ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, want) {
		t.Error("it does not hold what was written")
	}
	if err := d.WriteAt(t.Context(), got[:512], 0, 0); err == nil {
		t.Error("a disk that is open for reading can be written")
	}
}

// TestDiskFull: the numbers of Windows mean what the protocol's do.
func TestDiskFull(t *testing.T) {
	for from, to := range map[error]error{
		windows.ERROR_DISK_FULL: syscall.ENOSPC, windows.ERROR_DISK_QUOTA_EXCEEDED: syscall.EDQUOT,
		windows.ERROR_WRITE_PROTECT: syscall.EROFS, windows.ERROR_ACCESS_DENIED: syscall.EACCES,
	} {
		err := file.SysError(&os.PathError{Op: "write", Path: "x", Err: from})
		if !errors.Is(err, to) || !errors.Is(err, from) {
			t.Errorf("%v is not %v", err, to)
		}
	}
	if err := file.SysError(windows.ERROR_CRC); err != error(windows.ERROR_CRC) {
		t.Errorf("a bad sector: %v", err)
	}
}
