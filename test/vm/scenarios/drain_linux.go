package scenarios

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// Writers of drain, each with blocks of its own.
const (
	writers     = 6
	writerArea  = 1024 // blocks
	blockLength = 4096
)

// drain ends the server by SIGTERM while many write, over and over. It must end with
// success, and every write that was acknowledged must be there afterwards, by the
// newest number that was acknowledged or a later one.
func drain(t *guest.T) {
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 64*mib)
	s := serve(t, image)
	k := guest.Attach{Server: s, TCP: true, Connections: 2}.Do(t, 0)
	var acked [writers][writerArea]uint64
	var total atomic.Int64
	var wg sync.WaitGroup
	for w := range writers {
		f := guest.Open(t, k.Path, os.O_RDWR|unix.O_DIRECT|[]int{0, unix.O_DSYNC}[w%2])
		wg.Go(func() {
			if err := number(f, w, &acked[w], &total); !isEIO(err) && !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("writer %d: %v", w, err)
			}
			f.Close()
		})
	}
	t.Await("the writers are at work", func() bool { return total.Load() > 500 })
	s.Stop()       // SIGTERM; and the status must be 0
	k.Disconnect() // what was not answered fails now, and not after the kernel's limit
	wg.Wait()
	t.Logf("%d writes were acknowledged before the server ended", total.Load())
	k.Detach()

	s = serve(t, image)
	k = guest.Attach{Server: s}.Do(t, 0)
	f := guest.Direct(t, k.Path)
	p := guest.Buffer(blockLength)
	for w := range writers {
		for b, want := range acked[w] {
			if want == 0 {
				continue
			}
			off := int64(w*writerArea+b) * blockLength
			if _, err := f.ReadAt(p, off); err != nil {
				t.Fatal(err)
			}
			if got := binary.BigEndian.Uint64(p); got < want || binary.BigEndian.Uint64(p[blockLength-8:]) != got {
				t.Fatalf("block at %d: number %d was acknowledged, found %d", off, want, got)
			}
		}
	}
	f.Close()
	k.Detach()
}

// number writes increasing numbers to the blocks of a writer until a write fails.
func number(f *os.File, w int, acked *[writerArea]uint64, total *atomic.Int64) error {
	p := guest.Buffer(blockLength)
	for n := uint64(1); ; n++ {
		b := int(n*7) % writerArea
		binary.BigEndian.PutUint64(p, n)
		binary.BigEndian.PutUint64(p[blockLength-8:], n)
		if _, err := f.WriteAt(p, int64(w*writerArea+b)*blockLength); err != nil {
			return err
		}
		acked[b] = n
		total.Add(1)
	}
}

// drainExt4 ends the server under a file system that is being written. What was synced
// must be there when the server runs again.
func drainExt4(t *guest.T) {
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 96*mib)
	s := serve(t, image)
	k := guest.Attach{Server: s, TCP: true, Connections: 2}.Do(t, 0)
	guest.Mkfs(t, k.Path)
	m := guest.Mount(t, k.Path, "errors=remount-ro")
	tree := guest.WriteTree(t, m.Dir, 300, 42)
	m.Sync()
	more := make(chan guest.Tree, 1)
	var synced atomic.Int64
	go func() {
		done := guest.Tree{}
		for i := 0; ; i++ {
			if err := syncedFile(m.Dir, i, done); err != nil {
				more <- done
				return
			}
			synced.Add(1)
		}
	}()
	var wg sync.WaitGroup
	for i := range 2 { // and others who do not sync
		wg.Go(func() { pour(filepath.Join(m.Dir, fmt.Sprintf("poured%d", i))) })
	}
	t.Await("files are being written", func() bool { return synced.Load() >= 20 })
	s.Stop()
	k.Disconnect()
	done := <-more
	wg.Wait()
	t.Logf("%d files were synced before the server ended", len(done))
	m.Unmount()
	k.Detach()

	s = serve(t, image)
	k = guest.Attach{Server: s}.Do(t, 0)
	m = guest.Mount(t, k.Path, "") // which plays back the journal
	tree.Verify(t, m.Dir)
	done.Verify(t, m.Dir)
	m.Unmount()
	guest.Fsck(t, k.Path)
	k.Detach()
}

// pour writes to a file, over and over, until that fails.
func pour(path string) {
	f, err := os.Create(path)
	if err != nil {
		return
	}
	defer f.Close()
	data := harness.Random(1, mib)
	for i := int64(0); err == nil; i++ {
		_, err = f.WriteAt(data, i%16*mib)
		if err == nil && i%4 == 3 {
			err = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		}
	}
}

// syncedFile writes a file and makes it stable, and notes it then.
func syncedFile(dir string, i int, done guest.Tree) error {
	name := fmt.Sprintf("synced%d", i%200)
	if i >= 200 {
		name = fmt.Sprintf("again%d", i%200) // the disk has an end
	}
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	delete(done, name)
	data := harness.Random(uint64(i), 20_000+i)
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	done.Note(name, data)
	return nil
}
