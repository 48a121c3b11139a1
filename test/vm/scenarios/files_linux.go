package scenarios

import (
	"os"
	"path/filepath"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// fileSystems lives with each kind of file system: makes it, writes a tree of files,
// trims, checks, and finds in the server's image what the kernel device shows. Then our
// client attaches what the reference's has.
func fileSystems(t *guest.T) {
	for _, fs := range guest.FileSystems() {
		image := guest.Empty(t, filepath.Join(t.TempDir(), fs.Type+".img"), fs.Least)
		s := serve(t, image)
		k := guest.Attach{Server: s, TCP: true}.Do(t, 0)
		fs.Make(t, k.Path)
		m := fs.On(t, k.Path)
		tree := guest.WriteTree(t, m.Dir, 200, 60)
		big := filepath.Join(m.Dir, "big")
		t.Must(os.WriteFile(big, harness.Random(9, 12*mib), 0o600), "write")
		m.Sync()
		full := guest.Allocated(t, image)
		t.Must(os.Remove(big), "remove")
		// Some give back what a file had in the background, and are done when unmounted.
		m.Unmount()
		m = fs.On(t, k.Path)
		if fs.Trims {
			harness.Run(t, "fstrim", m.Dir)
			if now := guest.Allocated(t, image); now > full-8*mib {
				t.Errorf("%s: 12 MiB were trimmed, and the image went from %d to %d bytes", fs.Type, full, now)
			}
		}
		guest.DropCaches(t)
		tree.Verify(t, m.Dir)
		m.Unmount()
		fs.Check(t, k.Path)
		guest.SameContents(t, k.Path, image)
		k.Detach()

		own := guest.Keep{URIs: []string{s.URI("disk")}, Connections: 2}.Do(t, 0)
		m = fs.On(t, own.Path)
		tree.Verify(t, m.Dir)
		more := guest.WriteTree(t, filepath.Join(m.Dir, "more"), 300, 30)
		m.Sync()
		if fs.Trims {
			harness.Run(t, "fstrim", m.Dir)
		}
		guest.DropCaches(t)
		tree.Verify(t, m.Dir)
		more.Verify(t, filepath.Join(m.Dir, "more"))
		m.Unmount()
		fs.Check(t, own.Path)
		guest.SameContents(t, own.Path, image)
		own.Detach()
		s.Stop()
		t.Must(os.Remove(image), "remove the image")
	}
}
