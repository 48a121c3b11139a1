package memory_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
)

func TestConformance(t *testing.T) {
	blocktest.Run(t, blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			return memory.New(memory.Config{Size: size})
		},
	})
}

func open(t testing.TB, c memory.Config) (*memory.Memory, *block.Device) {
	t.Helper()
	b, err := memory.New(c)
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return b.(*memory.Memory), d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestGivesBack counts the chunks that writes take, and trims and zeroes free.
func TestGivesBack(t *testing.T) {
	const size = memory.MaxSize
	m, d := open(t, memory.Config{Size: size})
	ctx := context.Background()
	used := func(chunks int64) {
		t.Helper()
		if got := m.Used(); got != chunks*memory.ChunkSize {
			t.Errorf("%d bytes used, want %d chunks", got, chunks)
		}
	}
	spots := []int64{0, 1<<40 - 1, 1<<50 + 12345, size - 2}
	for _, off := range spots {
		must(t, d.WriteAt(ctx, []byte{1, 2}, off, 0))
	}
	used(5) // one write is on a border
	for _, off := range spots {
		p := make([]byte, 2)
		if must(t, d.ReadAt(ctx, p, off)); !bytes.Equal(p, []byte{1, 2}) {
			t.Errorf("at %d: % x", off, p)
		}
	}
	must(t, d.Trim(ctx, 1<<50+12345, 1, 0))
	used(5) // a byte is left in the chunk
	must(t, d.Trim(ctx, 1<<50+12346, 1, 0))
	used(4)
	must(t, d.WriteZeroes(ctx, 1, 1<<40, block.FastZero)) // all of it in no time
	used(2)
	must(t, d.WriteZeroes(ctx, 1<<30, 3*memory.ChunkSize, block.NoHole))
	used(5)
	must(t, d.Trim(ctx, 0, size, 0))
	used(0)
	if err := d.WriteZeroes(ctx, 0, 10, block.NoHole|block.FastZero); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("fast zeroes that take memory: %v", err)
	}
	used(0)
}

// TestExtents wants data where there are chunks, and one hole between them.
func TestExtents(t *testing.T) {
	const size = 1<<42 + 100
	_, d := open(t, memory.Config{Size: size})
	ctx := context.Background()
	const c = memory.ChunkSize
	must(t, d.WriteAt(ctx, make([]byte, 2*c), 10*c, 0))
	must(t, d.WriteAt(ctx, []byte{1}, 1<<41, 0))
	hole := block.Hole | block.Zero
	want := []block.Extent{
		{Length: 10*c - 5, State: hole},
		{Length: 2 * c, Depth: 1},
		{Length: 1<<41 - 12*c, State: hole},
		{Length: c, Depth: 1},
		{Length: 1<<41 - c + 100, State: hole},
	}
	var got []block.Extent
	must(t, d.Extents(ctx, 5, size-5, 0, func(x block.Extent) bool { got = append(got, x); return true }))
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("extents %+v\nwant %+v", got, want)
	}
}

// TestLimit fills a disk to its limit, and goes on after a trim.
func TestLimit(t *testing.T) {
	m, d := open(t, memory.Config{Size: 1 << 30, Limit: 4*memory.ChunkSize + 1})
	ctx := context.Background()
	big := bytes.Repeat([]byte{7}, 5*memory.ChunkSize)
	err := d.WriteAt(ctx, big, 0, block.FUA)
	var at *block.OffsetError
	if !errors.Is(err, syscall.ENOSPC) || !errors.As(err, &at) || at.Off != 4*memory.ChunkSize {
		t.Fatalf("write past the limit: %v (%+v)", err, at)
	}
	if d.TryWrite(big[:1], 1<<20) {
		t.Error("TryWrite past the limit")
	}
	err = d.WriteZeroes(ctx, 1<<20, 10, block.NoHole)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("zeroes past the limit: %v", err)
	}
	must(t, d.WriteZeroes(ctx, 1<<20, 1<<20, 0))
	must(t, d.Broken())
	must(t, d.WriteAt(ctx, big[:100], 100, 0)) // where there is memory
	must(t, d.Trim(ctx, 0, memory.ChunkSize, 0))
	must(t, d.WriteAt(ctx, big[:100], 1<<20, 0))
	if m.Used() != 4*memory.ChunkSize {
		t.Errorf("%d bytes used", m.Used())
	}
}

// TestLimitTogether fills a disk from many sides: the count must be right.
func TestLimitTogether(t *testing.T) {
	m, d := open(t, memory.Config{Size: 1 << 30, Limit: 50 * memory.ChunkSize})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				off := int64(i*4+g) * memory.ChunkSize
				err := d.WriteAt(context.Background(), []byte{1}, off, 0)
				if err != nil && !errors.Is(err, syscall.ENOSPC) {
					t.Error(err)
				}
				if i%3 == 0 {
					if err := d.Trim(context.Background(), off, memory.ChunkSize, 0); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	var data int64
	must(t, d.Extents(context.Background(), 0, d.Size(), 0, func(x block.Extent) bool {
		if x.State == 0 {
			data += x.Length
		}
		return true
	}))
	if data != m.Used() || data > 50*memory.ChunkSize {
		t.Errorf("%d bytes in extents, %d used", data, m.Used())
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []memory.Config{{Size: -1}, {Size: memory.MaxSize + 1}, {Size: 1, Limit: -1}, {Size: 1, Limit: memory.ChunkSize - 1}} {
		if _, err := memory.New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// TestAllocations wants none once a chunk is there.
func TestAllocations(t *testing.T) {
	_, d := open(t, memory.Config{Size: 1 << 30})
	ctx := context.Background()
	p := make([]byte, 64<<10)
	must(t, d.WriteAt(ctx, p, 100, 0))
	for name, do := range map[string]func(){
		"ReadAt":   func() { d.ReadAt(ctx, p, 100) },
		"hole":     func() { d.ReadAt(ctx, p, 1<<29) },
		"WriteAt":  func() { d.WriteAt(ctx, p, 100, 0) },
		"TryRead":  func() { d.TryRead(p, 100) },
		"TryWrite": func() { d.TryWrite(p, 100) },
	} {
		if n := testing.AllocsPerRun(100, do); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func benchmark(b *testing.B, n int64, do func(d *block.Device, p []byte, off int64)) {
	const size = 64 << 20
	_, d := open(b, memory.Config{Size: size})
	must(b, d.WriteZeroes(context.Background(), 0, size, block.NoHole))
	b.SetBytes(n)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, n)
		for off := int64(0); pb.Next(); off = (off*5 + 12345*4096) & (size - 1) &^ (n - 1) {
			do(d, p, off)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	for _, n := range []int64{4 << 10, 256 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			benchmark(b, n, func(d *block.Device, p []byte, off int64) { d.TryRead(p, off) })
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, n := range []int64{4 << 10, 256 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			benchmark(b, n, func(d *block.Device, p []byte, off int64) {
				if err := d.WriteAt(context.Background(), p, off, 0); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

func ExampleNew() {
	b, err := memory.New(memory.Config{Size: 1 << 40})
	if err != nil {
		panic(err)
	}
	disk, err := block.New(b)
	if err != nil {
		panic(err)
	}
	defer disk.Close()
	ctx := context.Background()
	if err := disk.WriteAt(ctx, []byte("far out"), 1<<39, 0); err != nil {
		panic(err)
	}
	fmt.Println(disk.Size(), b.(*memory.Memory).Used())
	// Output: 1099511627776 32768
}
