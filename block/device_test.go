package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
)

// device makes a Device of b, which the test closes.
func device(t testing.TB, b block.Backend) *block.Device {
	t.Helper()
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// log keeps the calls that a disk sees.
type log struct {
	mu    sync.Mutex
	calls []blocktest.Call
}

func (l *log) add(c blocktest.Call) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, c)
	return nil
}

func (l *log) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var s []string
	for _, c := range l.calls {
		s = append(s, c.String())
	}
	l.calls = nil
	return strings.Join(s, "; ")
}

// bare has only what a Backend must have.
type bare struct{ caps block.Caps }

func (b bare) Caps() block.Caps                                { return b.caps }
func (bare) Close() error                                      { return nil }
func (bare) ReadAt(_ context.Context, p []byte, _ int64) error { clear(p); return nil }

// writable can also be written.
type writable struct{ bare }

func (writable) WriteAt(context.Context, []byte, int64, block.Flags) error { return nil }

// flushable can also be flushed.
type flushable struct{ writable }

func (flushable) Flush(context.Context) error { return nil }

// zeroable can also be zeroed.
type zeroable struct{ writable }

func (zeroable) WriteZeroes(context.Context, int64, int64, block.Flags) error { return nil }

func TestSettle(t *testing.T) {
	const n, e, auto, none = block.Native, block.Emulated, block.Auto, block.None
	type levels struct{ flush, fua, trim, zero, fastZero, extents, cache block.Level }
	caps := func(l levels) block.Caps {
		return block.Caps{Flush: l.flush, FUA: l.fua, Trim: l.trim, Zero: l.zero, FastZero: l.fastZero, Extents: l.extents, Cache: l.cache}
	}
	for _, x := range []struct {
		name string
		make func(block.Caps) block.Backend
		says levels
		want levels
	}{
		{"a reader", func(c block.Caps) block.Backend { return bare{c} },
			levels{}, levels{none, none, none, none, none, e, e}},
		{"a reader that promises changes", func(c block.Caps) block.Backend { return bare{c} },
			levels{fua: n, trim: n, zero: n, fastZero: n}, levels{none, none, none, none, none, e, e}},
		{"a writer", func(c block.Caps) block.Backend { return writable{bare{c}} },
			levels{}, levels{none, none, none, e, e, e, e}},
		{"a writer that refuses", func(c block.Caps) block.Backend { return writable{bare{c}} },
			levels{zero: none, extents: none, cache: none}, levels{none, none, none, none, none, none, none}},
		{"a writer with FUA", func(c block.Caps) block.Backend { return writable{bare{c}} },
			levels{fua: n, extents: e}, levels{none, n, none, e, e, e, e}},
		{"with flush", func(c block.Caps) block.Backend { return flushable{writable{bare{c}}} },
			levels{}, levels{n, e, none, e, e, e, e}},
		{"with flush, refused", func(c block.Caps) block.Backend { return flushable{writable{bare{c}}} },
			levels{flush: none}, levels{none, none, none, e, e, e, e}},
		{"with zeroes", func(c block.Caps) block.Backend { return zeroable{writable{bare{c}}} },
			levels{}, levels{none, none, none, n, n, e, e}},
		{"with slow zeroes", func(c block.Caps) block.Backend { return zeroable{writable{bare{c}}} },
			levels{zero: auto, fastZero: none}, levels{none, none, none, n, none, e, e}},
	} {
		d, err := block.New(x.make(caps(x.says)))
		if err != nil {
			t.Errorf("%s: %v", x.name, err)
			continue
		}
		c := d.Caps()
		got := levels{c.Flush, c.FUA, c.Trim, c.Zero, c.FastZero, c.Extents, c.Cache}
		if got != x.want {
			t.Errorf("%s: %+v, want %+v", x.name, got, x.want)
		}
		if c.BlockSize.Minimum != 1 || c.BlockSize.Preferred != 4096 || c.Instance == "" {
			t.Errorf("%s: %+v", x.name, c)
		}
	}
}

// TestRefused wants New to refuse what cannot be kept, and to say what.
func TestRefused(t *testing.T) {
	w := func(c block.Caps) block.Backend { return writable{bare{c}} }
	for _, x := range []struct {
		b    block.Backend
		want string
	}{
		{w(block.Caps{Flush: block.Native}), "promises Flush"},
		{w(block.Caps{Flush: block.Emulated}), "promises Flush"},
		{w(block.Caps{FUA: block.Emulated}), "promises FUA"},
		{w(block.Caps{Trim: block.Native}), "promises Trim"},
		{w(block.Caps{Zero: block.Native}), "promises Zero"},
		{w(block.Caps{FastZero: block.Native}), "promises FastZero"},
		{zeroable{writable{bare{block.Caps{Zero: block.Emulated, FastZero: block.Native}}}}, "promises FastZero"},
		{w(block.Caps{Zero: block.None, FastZero: block.Emulated}), "promises FastZero"},
		{w(block.Caps{Extents: block.Native}), "promises Extents"},
		{w(block.Caps{Cache: block.Native}), "promises Cache"},
		{bare{block.Caps{Flush: block.Native, Cache: block.Native}}, "promises Cache"},
		{bare{block.Caps{Size: -1}}, "size -1"},
		{bare{block.Caps{Size: 4097, BlockSize: block.BlockSize{Minimum: 4096}}}, "size 4097"},
		{bare{block.Caps{BlockSize: block.BlockSize{Minimum: 3}}}, "minimum block size 3"},
		{bare{block.Caps{BlockSize: block.BlockSize{Minimum: -1}}}, "minimum block size -1"},
		{bare{block.Caps{BlockSize: block.BlockSize{Minimum: 1 << 17}}}, "minimum block size 131072"},
		{bare{block.Caps{BlockSize: block.BlockSize{Minimum: 512, Maximum: 256}}}, "maximum block size 256"},
		{bare{block.Caps{BlockSize: block.BlockSize{Minimum: 512, Maximum: 1000}}}, "maximum block size 1000"},
		{bare{block.Caps{BlockSize: block.BlockSize{Maximum: -5}}}, "maximum block size -5"},
	} {
		_, err := block.New(x.b)
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%+v: error %v, want %q", x.b.Caps(), err, x.want)
		}
	}
}

// TestRounding looks at the very calls that a back end with blocks of 512 bytes
// sees, of at most 1024 at once.
func TestRounding(t *testing.T) {
	caps := blocktest.FullCaps(1 << 20)
	caps.BlockSize = block.BlockSize{Minimum: 512, Maximum: 1024}
	disk := blocktest.NewDisk(t, caps)
	d := device(t, disk.Open())
	var l log
	disk.Hook = l.add
	ctx := context.Background()
	p := make([]byte, 4096)
	for _, x := range []struct {
		name string
		do   func() error
		want string
	}{
		{"aligned read", func() error { return d.ReadAt(ctx, p[:512], 512) }, "ReadAt of 512 bytes at 512"},
		{"odd read", func() error { return d.ReadAt(ctx, p[:3], 511) }, "ReadAt of 1024 bytes at 0"},
		{"long read", func() error { return d.ReadAt(ctx, p[:2500], 0) },
			"ReadAt of 1024 bytes at 0; ReadAt of 1024 bytes at 1024; ReadAt of 512 bytes at 2048"},
		{"aligned write", func() error { return d.WriteAt(ctx, p[:512], 512, block.FUA) }, "WriteAt of 512 bytes at 512 FUA"},
		{"write inside a block", func() error { return d.WriteAt(ctx, p[:5], 700, 0) },
			"ReadAt of 512 bytes at 512; WriteAt of 512 bytes at 512"},
		{"write of a beginning", func() error { return d.WriteAt(ctx, p[:5], 512, 0) },
			"ReadAt of 512 bytes at 512; WriteAt of 512 bytes at 512"},
		{"write of an end", func() error { return d.WriteAt(ctx, p[:5], 1019, 0) },
			"ReadAt of 512 bytes at 512; WriteAt of 512 bytes at 512"},
		{"write over a border", func() error { return d.WriteAt(ctx, p[:5], 1020, 0) },
			"ReadAt of 512 bytes at 512; ReadAt of 512 bytes at 1024; WriteAt of 1024 bytes at 512"},
		{"long odd write", func() error { return d.WriteAt(ctx, p[:1600], 511, block.FUA) },
			"ReadAt of 512 bytes at 0; ReadAt of 512 bytes at 2048; WriteAt of 1024 bytes at 0 FUA; WriteAt of 1024 bytes at 1024 FUA; WriteAt of 512 bytes at 2048 FUA"},
		{"odd trim", func() error { return d.Trim(ctx, 100, 1500, block.FUA) }, "Trim of 1024 bytes at 512 FUA"},
		{"small trim", func() error { return d.Trim(ctx, 100, 800, 0) }, ""},
		{"odd zeroes", func() error { return d.WriteZeroes(ctx, 500, 1100, block.FUA|block.NoHole) },
			"WriteZeroes of 1024 bytes at 512 FUA NoHole; ReadAt of 512 bytes at 0; WriteAt of 512 bytes at 0 FUA; ReadAt of 512 bytes at 1536; WriteAt of 512 bytes at 1536 FUA"},
		{"small zeroes", func() error { return d.WriteZeroes(ctx, 500, 20, 0) },
			"ReadAt of 512 bytes at 0; ReadAt of 512 bytes at 512; WriteAt of 1024 bytes at 0"},
		{"aligned fast zeroes", func() error { return d.WriteZeroes(ctx, 0, 4096, block.FastZero) }, "WriteZeroes of 4096 bytes at 0 FastZero"},
		{"odd cache", func() error { return d.Cache(ctx, 100, 1000) }, "Cache of 1536 bytes at 0"},
		{"foreign flags", func() error { return d.WriteAt(ctx, p[:512], 0, block.NoHole|block.FastZero|block.One) }, "WriteAt of 512 bytes at 0"},
	} {
		if err := x.do(); err != nil {
			t.Errorf("%s: %v", x.name, err)
		}
		if got := l.take(); got != x.want {
			t.Errorf("%s:\n got %s\nwant %s", x.name, got, x.want)
		}
	}
	err := d.WriteZeroes(ctx, 500, 1100, block.FastZero)
	if got := l.take(); !errors.Is(err, errors.ErrUnsupported) || got != "" {
		t.Errorf("odd fast zeroes: error %v after %q", err, got)
	}
}

// TestEmulation looks at what becomes of abilities that a back end lacks.
func TestEmulation(t *testing.T) {
	disk := blocktest.NewDisk(t, block.Caps{
		Size: 4 << 20, Trim: block.None, Zero: block.Emulated, Extents: block.Emulated, Cache: block.Emulated,
	})
	d := device(t, disk.Open())
	var l log
	disk.Hook = l.add
	ctx := context.Background()
	must(t, d.WriteAt(ctx, []byte{1}, 5, block.FUA))
	if got := l.take(); got != "WriteAt of 1 bytes at 5; Flush of 0 bytes at 0" {
		t.Errorf("FUA by flushing: %s", got)
	}
	must(t, d.WriteZeroes(ctx, 100, 2<<20, block.NoHole|block.FUA))
	if got := l.take(); got != "WriteAt of 1048476 bytes at 100; WriteAt of 1048576 bytes at 1048576; WriteAt of 100 bytes at 2097152; Flush of 0 bytes at 0" {
		t.Errorf("zeroes by writing: %s", got)
	}
	must(t, d.Cache(ctx, 1, 1<<20))
	if got := l.take(); got != "ReadAt of 1048576 bytes at 1" {
		t.Errorf("cache by reading: %s", got)
	}
	var x []block.Extent
	must(t, d.Extents(ctx, 10, 20, 0, func(e block.Extent) bool { x = append(x, e); return true }))
	if len(x) != 1 || x[0].State != 0 || x[0].Length != 4<<20-10 {
		t.Errorf("extents: %+v", x)
	}
	for what, err := range map[string]error{
		"trim":        d.Trim(ctx, 0, 4096, 0),
		"fast zeroes": d.WriteZeroes(ctx, 0, 4096, block.FastZero),
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := l.take(); got != "" {
		t.Errorf("what is refused has reached the disk: %s", got)
	}
}

// TestZeroFallback has a back end refuse zeroes, which are then written.
func TestZeroFallback(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(1<<20))
	disk.Load(bytes.Repeat([]byte{9}, 1<<20), 0)
	d := device(t, disk.Open())
	disk.Hook = func(c blocktest.Call) error {
		if c.Method == "WriteZeroes" {
			return fmt.Errorf("not here: %w", errors.ErrUnsupported)
		}
		return nil
	}
	ctx := context.Background()
	if err := d.WriteZeroes(ctx, 0, 1000, block.FastZero); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("fast zeroes: %v", err)
	}
	if disk.Contents()[0] != 9 {
		t.Error("refused fast zeroes have changed something")
	}
	must(t, d.WriteZeroes(ctx, 0, 1000, block.FUA))
	if c := disk.Contents(); !bytes.Equal(c[:1000], make([]byte, 1000)) || c[1000] != 9 {
		t.Error("zeroes were not written")
	}
}

// TestFailedFlush wants nothing accepted after a failed flush, however it came.
func TestFailedFlush(t *testing.T) {
	emulated := blocktest.FullCaps(1 << 20)
	emulated.FUA = block.Emulated
	ctx := context.Background()
	for _, x := range []struct {
		name, method string
		caps         block.Caps
		do           func(d *block.Device) error
	}{
		{"flush", "Flush", emulated, func(d *block.Device) error { return d.Flush(ctx) }},
		{"emulated FUA", "Flush", emulated, func(d *block.Device) error { return d.WriteAt(ctx, []byte{1}, 0, block.FUA) }},
		{"native FUA", "WriteAt", blocktest.FullCaps(1 << 20), func(d *block.Device) error { return d.WriteAt(ctx, []byte{1}, 0, block.FUA) }},
		{"FUA trim", "Trim", blocktest.FullCaps(1 << 20), func(d *block.Device) error { return d.Trim(ctx, 0, 4096, block.FUA) }},
		{"FUA zeroes", "WriteZeroes", blocktest.FullCaps(1 << 20), func(d *block.Device) error { return d.WriteZeroes(ctx, 0, 4096, block.FUA) }},
	} {
		t.Run(x.name, func(t *testing.T) {
			disk := blocktest.NewDisk(t, x.caps)
			d := device(t, disk.Open())
			disk.Hook = func(c blocktest.Call) error {
				if c.Method == x.method {
					return syscall.EIO
				}
				return nil
			}
			for range 2 {
				if err := x.do(d); !errors.Is(err, block.ErrNotStable) || !errors.Is(err, syscall.EIO) {
					t.Fatalf("error %v", err)
				}
			}
			var l log
			disk.Hook = l.add // all would be well again
			for what, err := range map[string]error{
				"flush":     d.Flush(ctx),
				"write":     d.WriteAt(ctx, []byte{1}, 0, 0),
				"FUA write": d.WriteAt(ctx, []byte{1}, 0, block.FUA),
				"trim":      d.Trim(ctx, 0, 4096, 0),
				"zeroes":    d.WriteZeroes(ctx, 0, 4096, 0),
				"broken":    d.Broken(),
			} {
				if !errors.Is(err, block.ErrNotStable) {
					t.Errorf("%s afterwards: %v", what, err)
				}
			}
			if d.TryWrite([]byte{1}, Sector) {
				t.Error("TryWrite afterwards")
			}
			if got := l.take(); got != "" {
				t.Errorf("the disk was asked for %s", got)
			}
			must(t, d.ReadAt(ctx, make([]byte, 10), 0))
		})
	}
}

// Sector is where a blocktest.Disk accepts TryWrite.
const Sector = blocktest.Sector

// TestHarmlessErrors wants what was refused for a reason of its own to break nothing.
func TestHarmlessErrors(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(1<<20))
	d := device(t, disk.Open())
	ctx := context.Background()
	for _, cause := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EINVAL, syscall.EPERM, context.Canceled} {
		disk.Hook = func(blocktest.Call) error { return cause }
		if err := d.WriteAt(ctx, []byte{1}, 0, block.FUA); !errors.Is(err, cause) || d.Broken() != nil {
			t.Errorf("FUA write: error %v, broken: %v", err, d.Broken())
		}
	}
	disk.Hook = func(blocktest.Call) error { return syscall.EIO }
	if err := d.WriteAt(ctx, []byte{1}, 0, 0); !errors.Is(err, syscall.EIO) || d.Broken() != nil {
		t.Errorf("write without FUA: error %v, broken: %v", err, d.Broken())
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	disk.Hook = func(blocktest.Call) error { return gone.Err() }
	if err := d.Flush(gone); !errors.Is(err, context.Canceled) || d.Broken() != nil {
		t.Errorf("flush that was given up: error %v, broken: %v", err, d.Broken())
	}
	var told []error
	d.OnBroken(func(err error) { told = append(told, err) })
	d.OnBroken(func(error) { t.Error("the second one was told") })
	// The same error from elsewhere is a failed flush.
	if err := d.Flush(ctx); !errors.Is(err, block.ErrNotStable) || d.Broken() == nil {
		t.Errorf("flush: error %v, broken: %v", err, d.Broken())
	}
	if err := d.Flush(ctx); !errors.Is(err, block.ErrNotStable) {
		t.Errorf("second flush: error %v", err)
	}
	if len(told) != 1 || !errors.Is(told[0], block.ErrNotStable) {
		t.Errorf("told of %v, want one failed flush", told)
	}
}

// TestGivenUpAndLost: a flush that was given up, but below which data were lost, breaks
// the device all the same.
func TestGivenUpAndLost(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(1<<20))
	d := device(t, disk.Open())
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	disk.Hook = func(blocktest.Call) error { return fmt.Errorf("%w: %w", block.ErrNotStable, gone.Err()) }
	if err := d.Flush(gone); !errors.Is(err, block.ErrNotStable) || d.Broken() == nil {
		t.Errorf("error %v, broken: %v", err, d.Broken())
	}
}

// TestFlushBesideFUA: a flush that ends well does not hide that a FUA write has failed
// meanwhile, which may have taken the system's only word of lost data.
func TestFlushBesideFUA(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(1<<20))
	d := device(t, disk.Open())
	disk.Hook = func(c blocktest.Call) error {
		switch c.Method {
		case "WriteAt":
			return syscall.EIO
		case "Flush":
			if err := d.WriteAt(t.Context(), []byte{1}, 0, block.FUA); !errors.Is(err, block.ErrNotStable) {
				t.Errorf("FUA write: %v", err)
			}
		}
		return nil
	}
	if err := d.Flush(t.Context()); !errors.Is(err, block.ErrNotStable) {
		t.Errorf("flush: %v", err)
	}
}

// TestFlushesWait lets a flush fail while others wait: none of them may succeed,
// for the system tells of lost data only once.
func TestFlushesWait(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(1<<20))
	d := device(t, disk.Open())
	var calls atomic.Int32
	started, fail := make(chan struct{}), make(chan struct{})
	disk.Hook = func(blocktest.Call) error {
		if calls.Add(1) == 1 {
			close(started)
			<-fail
			return syscall.EIO
		}
		return nil
	}
	errs := make(chan error, 5)
	go func() { errs <- d.Flush(context.Background()) }()
	<-started
	for range 4 {
		go func() { errs <- d.Flush(context.Background()) }()
	}
	close(fail)
	for range 5 {
		if err := <-errs; !errors.Is(err, block.ErrNotStable) {
			t.Errorf("flush: %v", err)
		}
	}
	if calls.Load() != 1 {
		t.Errorf("the disk was flushed %d times", calls.Load())
	}
}

// TestFlushesCover counts: a flush is answered only by one that began after it.
func TestFlushesCover(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(1<<20))
	d := device(t, disk.Open())
	ctx := context.Background()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 50 {
				off := int64(i*50+k) * Sector
				if err := errors.Join(d.WriteAt(ctx, bytes.Repeat([]byte{1}, Sector), off, 0), d.Flush(ctx)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	disk.Cut()
	want := bytes.Repeat([]byte{1}, 400*Sector)
	if !bytes.Equal(disk.Contents()[:len(want)], want) {
		t.Error("a flush was answered, and the write before it was lost")
	}
}

// extenter answers as a test tells it.
type extenter struct {
	bare
	list []block.Extent
}

func (e extenter) Extents(_ context.Context, _, _ int64, _ block.Flags, add func(block.Extent) bool) error {
	for _, x := range e.list {
		if !add(x) {
			break
		}
	}
	return nil
}

func TestExtents(t *testing.T) {
	caps := block.Caps{Size: 1 << 20, BlockSize: block.BlockSize{Minimum: 512}}
	d := device(t, extenter{bare{caps}, []block.Extent{
		{Length: 512, State: block.Hole}, {Length: 0}, {Length: 1024, State: block.Zero}, {Length: math.MaxInt64},
	}})
	for _, x := range []struct {
		off, n int64
		want   string
	}{
		{100, 100, "[{412 1 0}]"},
		{100, 412, "[{412 1 0}]"},
		{100, 413, "[{412 1 0} {1024 2 0}]"},
		{100, 2000, "[{412 1 0} {1024 2 0} {1047040 0 0}]"},
		{1<<20 - 1, 1, "[{1 1 0}]"},
	} {
		var got []block.Extent
		must(t, d.Extents(context.Background(), x.off, x.n, 0, func(e block.Extent) bool { got = append(got, e); return true }))
		if fmt.Sprint(got) != x.want {
			t.Errorf("%d bytes at %d: %v, want %s", x.n, x.off, got, x.want)
		}
	}
}

// TestCacheStops has the caller of a long, emulated Cache go away.
func TestCacheStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	d := device(t, reader{bare{block.Caps{Size: math.MaxInt64}}, cancel})
	if err := d.Cache(ctx, 0, math.MaxInt64); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

type reader struct {
	bare
	read func()
}

func (r reader) ReadAt(context.Context, []byte, int64) error { r.read(); return nil }
