package scenarios

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

const mib = harness.MiB

// serve serves a file or device as the export "disk", with further lines for its
// section, on TCP and a unix socket.
func serve(t *guest.T, exportname string, lines ...string) *harness.Server {
	exports := fmt.Sprintf("[disk]\nexportname = %s\n", exportname)
	for _, l := range lines {
		exports += l + "\n"
	}
	return harness.Start(t, harness.Config{Exports: exports, TCP: true})
}

// attachNetlink attaches by the interface that nbd-client uses today.
func attachNetlink(t *guest.T) { attach(t, false) }

// attachIoctl attaches by the old interface.
func attachIoctl(t *guest.T) { attach(t, true) }

// attach attaches a device again and again, in every way, and looks at its size, its
// abilities, and whether bytes arrive where they should.
func attach(t *guest.T, ioctl bool) {
	const size = 64*mib + 512 // the kernel counts in sectors
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), size)
	s := serve(t, image)
	for i, way := range []guest.Attach{
		{TCP: true}, {TCP: false}, {TCP: true, Connections: 4}, {TCP: false, Connections: 4},
	} {
		way.Server, way.Ioctl = s, ioctl
		k := way.Do(t, 0)
		if got := guest.Size(t, k.Path); got != size {
			t.Errorf("%v: the device has %d bytes, want %d", way, got, size)
		}
		guest.AwaitConnections(t, s, max(way.Connections, 1))
		for attr, want := range map[string]string{"ro": "0", "queue/write_cache": "write back", "queue/fua": "1"} {
			if got := k.Attr(attr); got != want {
				t.Errorf("%v: %s is %q, want %q", way, attr, got, want)
			}
		}
		if k.Attr("queue/discard_max_bytes") == "0" {
			t.Errorf("%v: the device cannot discard", way)
		}
		useAttached(t, k, image, uint64(i))
		k.Detach()
		guest.AwaitConnections(t, s, 0)
	}
}

// useAttached writes at the beginning and at the very end of a device, and looks for
// it in the image behind the server.
func useAttached(t *guest.T, k *guest.Kernel, image string, seed uint64) {
	f := guest.Direct(t, k.Path)
	defer f.Close()
	size := guest.Size(t, k.Path)
	first, last := guest.Filled(2*seed, 256<<10), guest.Filled(2*seed+1, 512)
	guest.WriteAt(t, f, first, 4096)
	guest.WriteAt(t, f, last, size-512)
	guest.ReadBack(t, f, first, 4096)
	guest.ReadBack(t, f, last, size-512)
	data, err := os.ReadFile(image)
	t.Must(err, "image")
	if !bytes.Equal(data[4096:][:len(first)], first) || !bytes.Equal(data[size-512:], last) {
		t.Errorf("what was written to %s is not in the image", k.Path)
	}
}

// readOnly attaches a read-only export.
func readOnly(t *guest.T) {
	dir := t.TempDir()
	data := harness.Random(1, 2*mib)
	image := harness.Image(t, dir, "disk.img", data)
	s := serve(t, image, "readonly = true")
	for _, ioctl := range []bool{false, true} {
		k := guest.Attach{Server: s, Ioctl: ioctl}.Do(t, 0)
		if out := harness.Run(t, "blockdev", "--getro", k.Path); out != "1\n" {
			t.Errorf("blockdev --getro says %q", out)
		}
		if f, err := os.OpenFile(k.Path, os.O_RDWR, 0); err == nil {
			if _, err := f.WriteAt(guest.Filled(2, 4096), 0); err == nil {
				err = f.Sync()
				if err == nil {
					t.Error("a write was accepted")
				}
			}
			f.Close()
		}
		if err := unix.Mount(k.Path, "/mnt", "ext4", 0, ""); err == nil {
			t.Error("noise was mounted")
		}
		guest.SameContents(t, k.Path, image)
		k.Detach()
	}
	// The ioctl of nbd-client marks the device for good, and an attachment by netlink
	// does not take the mark away.
	harness.Run(t, "blockdev", "--setrw", "/dev/nbd0")
	harness.Same(t, image, data)
}
