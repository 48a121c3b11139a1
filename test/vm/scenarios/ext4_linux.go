package scenarios

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// ext4 uses an image in memory.
func ext4(t *guest.T) { live(t, t.TempDir()) }

// imageOnExt4 uses an image on a file system of disks, which has other ways to read
// without waiting, and to give up space.
func imageOnExt4(t *guest.T) {
	disk := guest.Loop(t, guest.Empty(t, filepath.Join(t.TempDir(), "back.img"), 192*mib), 512)
	guest.Mkfs(t, disk)
	m := guest.Mount(t, disk, "")
	live(t, m.Dir)
	m.Unmount()
	guest.Fsck(t, disk)
}

// live lives with a file system on an image in dir: makes it, fills it, trims it, checks
// it, comes back.
func live(t *guest.T, dir string) {
	image := guest.Empty(t, filepath.Join(dir, "disk.img"), 96*mib)
	s := serve(t, image)
	k := guest.Attach{Server: s, TCP: true, Connections: 4}.Do(t, 0)
	guest.Mkfs(t, k.Path)
	m := guest.Mount(t, k.Path, "")
	tree := guest.WriteTree(t, m.Dir, 100, 105)
	big := filepath.Join(m.Dir, "big")
	t.Must(os.WriteFile(big, harness.Random(7, 24*mib), 0o600), "write")
	m.Sync()
	full := guest.Allocated(t, image)
	t.Must(os.Remove(big), "remove")
	m.Sync()
	harness.Run(t, "fstrim", m.Dir)
	if now := guest.Allocated(t, image); now > full-20*mib {
		t.Errorf("24 MiB were trimmed, and the image went from %d to %d bytes", full, now)
	}
	m.Unmount()
	guest.Fsck(t, k.Path)
	guest.SameContents(t, k.Path, image)
	k.Detach()
	guest.Fsck(t, image)

	k = guest.Attach{Server: s, Ioctl: true}.Do(t, 0)
	m = guest.Mount(t, k.Path, "discard")
	tree.Verify(t, m.Dir)
	more := guest.WriteTree(t, m.Dir, 1000, 21) // in place of files that are there
	for name, sum := range more {
		tree[name] = sum
	}
	m.Sync()
	guest.DropCaches(t)
	tree.Verify(t, m.Dir)
	m.Unmount()
	guest.Fsck(t, k.Path)
	k.Detach()
	s.Stop()
}

// networkHost starts a server outside of the machine. If the tests have the race
// detector, that server has it too.
func networkHost(t testing.TB) []string {
	dir := harness.Dir(t)
	image := harness.Image(t, dir, "disk.img", make([]byte, 96*mib))
	s := harness.StartIn(t, dir, harness.Config{Exports: "[disk]\nexportname = " + image + "\n", TCP: true})
	return []string{strconv.Itoa(s.Port)}
}

// network uses a server that is somewhere else.
func network(t *guest.T) {
	remote := guest.HostAddress + ":" + t.Args[0]
	k := guest.Attach{Remote: remote, Connections: 2}.Do(t, 0)
	guest.Mkfs(t, k.Path)
	m := guest.Mount(t, k.Path, "")
	tree := guest.WriteTree(t, m.Dir, 500, 105)
	m.Sync()
	harness.Run(t, "fstrim", m.Dir)
	guest.DropCaches(t)
	tree.Verify(t, m.Dir)
	m.Unmount()
	k.Detach()
	k = guest.Attach{Remote: remote}.Do(t, 0)
	guest.Fsck(t, k.Path)
	m = guest.Mount(t, k.Path, "ro")
	tree.Verify(t, m.Dir)
	m.Unmount()
	k.Detach()
}

// copyOnWrite serves diffs: what a client writes is gone when it comes again.
func copyOnWrite(t *guest.T) {
	dir := t.TempDir()
	data := harness.Sparse(3, 32*mib)
	image := harness.Image(t, dir, "disk.img", data)
	for _, line := range []string{"sparse_cow = false", "sparse_cow = true"} {
		s := serve(t, image, "copyonwrite = true", line)
		for range 2 {
			k := guest.Attach{Server: s}.Do(t, 0)
			guest.SameContents(t, k.Path, image)
			guest.Mkfs(t, k.Path)
			m := guest.Mount(t, k.Path, "")
			tree := guest.WriteTree(t, m.Dir, 50, 42)
			m.Sync()
			harness.Run(t, "fstrim", m.Dir)
			guest.DropCaches(t)
			tree.Verify(t, m.Dir)
			m.Unmount()
			guest.Fsck(t, k.Path)
			k.Detach()
			harness.Same(t, image, data)
		}
		// Four connections would be four diffs. The kernel knows by the flags.
		guest.Attach{Server: s, Connections: 4}.Refused(t, 0)
		twoDiffs(t, s)
		s.Stop()
	}
	harness.Same(t, image, data)
}

// twoDiffs attaches two devices to a copy-on-write export. Each has a diff of its own.
func twoDiffs(t *guest.T, s *harness.Server) {
	a, b := guest.Attach{Server: s}.Do(t, 0), guest.Attach{Server: s, TCP: true}.Do(t, 1)
	fa, fb := guest.Direct(t, a.Path), guest.Direct(t, b.Path)
	pa, pb := guest.Filled(1, 64<<10), guest.Filled(2, 64<<10)
	guest.WriteAt(t, fa, pa, 0)
	guest.WriteAt(t, fb, pb, 0)
	guest.ReadBack(t, fa, pa, 0)
	guest.ReadBack(t, fb, pb, 0)
	fa.Close()
	fb.Close()
	a.Detach()
	b.Detach()
	guest.AwaitConnections(t, s, 0)
	// The diffs have no names, or are removed.
	if files, err := os.ReadDir(filepath.Dir(s.File)); err != nil || len(files) > 2 {
		t.Errorf("in the server's folder are files without use: %v (%v)", files, err)
	}
}
