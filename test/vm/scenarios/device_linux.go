package scenarios

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// loopDevice serves a block device, and does on the kernel's device at the other end
// all that one does with disks.
func loopDevice(t *guest.T) {
	back := guest.Empty(t, filepath.Join(t.TempDir(), "back.img"), 64*mib)
	loop := guest.Loop(t, back, 512)
	s := serve(t, loop)
	k := guest.Attach{Server: s}.Do(t, 0)
	if got := guest.Size(t, k.Path); got != 64*mib {
		t.Errorf("the device has %d bytes", got)
	}
	discardAndZero(t, k, back)
	guest.Mkfs(t, k.Path)
	m := guest.Mount(t, k.Path, "")
	tree := guest.WriteTree(t, m.Dir, 9, 70)
	m.Sync()
	harness.Run(t, "fstrim", m.Dir)
	m.Unmount()
	guest.Fsck(t, k.Path)
	guest.SameContents(t, k.Path, loop)
	k.Detach()
	s.Stop()

	// Nobody holds the device now, and everything is on it.
	m = guest.Mount(t, loop, "ro")
	tree.Verify(t, m.Dir)
	m.Unmount()
}

// discardAndZero fills the device, and gives up or clears parts of it.
func discardAndZero(t *guest.T, k *guest.Kernel, back string) {
	data := guest.Filled(5, 16*mib)
	f := guest.Direct(t, k.Path)
	defer f.Close()
	guest.WriteAt(t, f, data, 0)
	t.Must(f.Sync(), "flush")
	full := guest.Allocated(t, back)
	harness.Run(t, "blkdiscard", "-o", fmt.Sprint(4*mib), "-l", fmt.Sprint(8*mib), k.Path)
	if now := guest.Allocated(t, back); now > full-8*mib {
		t.Errorf("8 MiB were discarded, and what is behind the device went from %d to %d bytes", full, now)
	}
	guest.ReadBack(t, f, data[:4*mib], 0)
	guest.ReadBack(t, f, data[12*mib:], 12*mib)
	// Not at borders of pages.
	harness.Run(t, "blkdiscard", "-z", "-o", "1536", "-l", fmt.Sprint(2*mib), k.Path)
	clear(data[1536:][:2*mib])
	guest.ReadBack(t, f, data[:4*mib], 0)
}

// sectors serves devices with larger sectors than the kernel's device at the other end:
// a write smaller than a sector must leave the rest of the sector alone.
func sectors(t *guest.T) {
	for _, sector := range []int{512, 4096} {
		back := guest.Empty(t, filepath.Join(t.TempDir(), "back.img"), 8*mib)
		loop := guest.Loop(t, back, sector)
		if got := guest.Attr(t, filepath.Base(loop), "queue/logical_block_size"); got != fmt.Sprint(sector) {
			t.Fatalf("%s has sectors of %s bytes", loop, got)
		}
		s := serve(t, loop)
		for _, b := range []string{"512", "1024", "4096"} {
			k := guest.Attach{Server: s, Args: []string{"-b", b}}.Do(t, 0)
			if got := k.Attr("queue/logical_block_size"); got != b {
				t.Errorf("asked for blocks of %s bytes, got %s", b, got)
			}
			var step int
			fmt.Sscan(b, &step)
			smallWrites(t, k, step, back)
			k.Detach()
		}
		s.Stop()
	}
}

// smallWrites writes every third block.
func smallWrites(t *guest.T, k *guest.Kernel, step int, back string) {
	const area = 256 << 10
	want := guest.Filled(uint64(step), area)
	f := guest.Direct(t, k.Path)
	defer f.Close()
	guest.WriteAt(t, f, want, 0)
	p := guest.Buffer(step)
	for off := step; off+step <= area; off += 3 * step {
		copy(p, bytes.Repeat([]byte{byte(off / step)}, step))
		copy(want[off:], p)
		guest.WriteAt(t, f, p, int64(off))
	}
	guest.ReadBack(t, f, want, 0)
	t.Must(f.Sync(), "flush")
	data, err := os.ReadFile(back)
	t.Must(err, "image")
	if !bytes.Equal(data[:area], want) {
		t.Errorf("after writes of %d bytes, what is behind the device is not what was written", step)
	}
}

// mountedDevice tries to serve a device that is mounted, and to mount one that is
// served.
func mountedDevice(t *guest.T) {
	dir := t.TempDir()
	loop := guest.Loop(t, guest.Empty(t, filepath.Join(dir, "back.img"), 32*mib), 512)
	guest.Mkfs(t, loop)
	m := guest.Mount(t, loop, "")
	config := filepath.Join(dir, "config")
	text := fmt.Sprintf("[generic]\nunixsock = %s\n[disk]\nexportname = %s\n", filepath.Join(dir, "sock"), loop)
	t.Must(os.WriteFile(config, []byte(text), 0o600), "config")
	said := harness.Refused(t, "/bin/nbd-server", "-n", "-C", config)
	if !strings.Contains(said, loop) || !strings.Contains(said, "mounted") {
		t.Errorf("the server refuses a mounted device, but does not say so: %q", said)
	}
	m.Unmount()

	s := serve(t, loop)
	k := guest.Attach{Server: s}.Do(t, 0)
	guest.Mount(t, k.Path, "").Unmount()
	k.Detach()
	s.Stop()
	guest.Mount(t, loop, "").Unmount()
	// Read-only takes nobody's place.
	m = guest.Mount(t, loop, "ro")
	s = serve(t, loop, "readonly = true")
	guest.Attach{Server: s}.Do(t, 0).Detach()
	s.Stop()
	m.Unmount()
}
