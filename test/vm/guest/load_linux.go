package guest

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Blocks of a Load.
const (
	loadBlock = 4096 // bytes
	loadArea  = 512  // blocks of one writer
)

// LoadSize is how many bytes of a device n writers of a Load use.
func LoadSize(n int) int64 { return int64(n) * loadArea * loadBlock }

// Load is a number of writers at work on a kernel device, each with blocks of its own.
// Each write carries a number that grows. A write that was acknowledged must be read
// back exactly as long as no later one was begun: one that is lost is seen, and so is
// an old one that lands late.
type Load struct {
	t       *T
	path    string
	stop    chan struct{}
	wg      sync.WaitGroup
	writers []*loadWriter
	// Faults counts I/O errors. The scenario says whether there may be some.
	Faults atomic.Int64
}

// loadWriter is one of them. The numbers are its own while it works.
type loadWriter struct {
	first int // block
	acked [loadArea]uint64
	maybe [loadArea]uint64 // of a write that failed: it may be there or not
	done  atomic.Int64     // writes that were acknowledged
	worst time.Duration    // that it was kept waiting: by a write, a read, a flush
}

// StartLoad starts n writers on the device, each on a processor of its own as far as there
// are so many: the kernel has a queue for each processor, and a connection for each queue.
func StartLoad(t *T, path string, n int) *Load {
	l := &Load{t: t, path: path, stop: make(chan struct{})}
	for i := range n {
		w := &loadWriter{first: i * loadArea}
		l.writers = append(l.writers, w)
		f := Open(t, path, os.O_RDWR|unix.O_DIRECT)
		l.wg.Go(func() {
			defer f.Close()
			runtime.LockOSThread() // for ever: the thread ends with this goroutine
			var one unix.CPUSet
			one.Set(i % runtime.NumCPU())
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				t.Errorf("choose a processor: %v", err)
				return
			}
			l.work(f, w)
		})
	}
	t.Cleanup(l.Stop)
	return l
}

// work writes, reads back something older, and now and then makes all stable.
func (l *Load) work(f *os.File, w *loadWriter) {
	p, q := Buffer(loadBlock), Buffer(loadBlock)
	for n := uint64(1); ; n++ {
		began := time.Now()
		select {
		case <-l.stop:
			return
		default:
		}
		if err := w.write(f, p, n); err != nil {
			l.Faults.Add(1)
			l.t.Logf("write %d: %v", n, err)
			return
		}
		if err := w.check(f, q, int(n*13)%loadArea); err != nil {
			l.t.Errorf("while the load runs: %v", err)
			return
		}
		if n%16 == 0 {
			if err := f.Sync(); err != nil {
				l.Faults.Add(1)
				l.t.Logf("sync after write %d: %v", n, err)
				return
			}
		}
		w.worst = max(w.worst, time.Since(began))
	}
}

// write writes the number n to its block.
func (w *loadWriter) write(f *os.File, p []byte, n uint64) error {
	b := int(n*7) % loadArea
	binary.BigEndian.PutUint64(p, n)
	binary.BigEndian.PutUint64(p[loadBlock-8:], n)
	w.maybe[b] = n
	if _, err := f.WriteAt(p, int64(w.first+b)*loadBlock); err != nil {
		return err
	}
	w.acked[b], w.maybe[b] = n, 0
	w.done.Add(1)
	return nil
}

// check reads a block. A block that was never written is not looked at.
func (w *loadWriter) check(f *os.File, q []byte, b int) error {
	want, maybe := w.acked[b], w.maybe[b]
	if want == 0 && maybe == 0 {
		return nil
	}
	off := int64(w.first+b) * loadBlock
	if _, err := f.ReadAt(q, off); err != nil {
		return fmt.Errorf("read at %d: %w", off, err)
	}
	first, last := binary.BigEndian.Uint64(q), binary.BigEndian.Uint64(q[loadBlock-8:])
	if first != want && (maybe == 0 || first != maybe) || last != first {
		return fmt.Errorf("at %d: number %d was acknowledged last, %d and %d are there", off, want, first, last)
	}
	return nil
}

// Progress waits until each writer has written n times more, for at most that long.
func (l *Load) Progress(n int64, limit time.Duration) {
	for i, w := range l.writers {
		goal := w.done.Load() + n
		l.t.AwaitFor(limit, fmt.Sprintf("writer %d goes on", i), func() bool { return w.done.Load() >= goal || l.Faults.Load() > 0 })
	}
}

// Written returns how many writes were acknowledged so far.
func (l *Load) Written() (n int64) {
	for _, w := range l.writers {
		n += w.done.Load()
	}
	return n
}

// Stop ends the writers and waits for them.
func (l *Load) Stop() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

// Worst returns for how long a writer was kept waiting at most. The load must have stopped.
func (l *Load) Worst() (d time.Duration) {
	for _, w := range l.writers {
		d = max(d, w.worst)
	}
	return d
}

// Verify stops the load, and reads all that was written, from path: the device or a file
// with the same contents. There must have been no I/O error.
func (l *Load) Verify(path string) {
	l.Stop()
	if n := l.Faults.Load(); n > 0 {
		l.t.Errorf("%d I/O errors", n)
	}
	f := Open(l.t, path, os.O_RDONLY)
	defer f.Close()
	q := make([]byte, loadBlock)
	for _, w := range l.writers {
		for b := range loadArea {
			if err := w.check(f, q, b); err != nil {
				l.t.Errorf("afterwards, in %s: %v", path, err)
			}
		}
	}
	l.t.Logf("%d writes were acknowledged and are there; a writer was kept waiting for %v at most", l.Written(), l.Worst().Round(time.Millisecond))
}
