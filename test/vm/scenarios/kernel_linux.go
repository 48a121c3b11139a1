package scenarios

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/nbdioctl"
	"nbd.example/nbd/kernel/nbdnl"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// hang ends what should not take long. It is no measure of speed.
const hang = time.Minute

// within returns a context that ends what hangs.
func within(t *guest.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	t.Cleanup(cancel)
	return ctx
}

// openDriver opens one of the two drivers.
func openDriver(t *guest.T, ioctl bool) kernel.Driver {
	var d kernel.Driver
	var err error
	if ioctl {
		d, err = nbdioctl.Open()
	} else {
		d, err = nbdnl.Open()
	}
	t.Must(err, "open the driver")
	t.Cleanup(func() { t.Must(d.Close(), "close the driver") })
	return d
}

// disk makes a disk in memory.
func disk(t *guest.T, size int64) *block.Device {
	b, err := memory.New(memory.Config{Size: size})
	t.Must(err, "disk")
	d, err := block.New(b)
	t.Must(err, "disk")
	return d
}

// held is a kernel device that a driver of ours has attached.
type held struct {
	*guest.T
	d    kernel.Driver
	i    kernel.Index
	info *kernel.Info
}

// hold attaches a device to a local server. What a does not say is as the server has it.
func hold(t *guest.T, d kernel.Driver, l *guest.Local, way string, n int, a kernel.Attach) *held {
	sockets, flags, size := l.Sockets(way, n)
	a.Sockets, a.Flags = sockets, flags
	if a.Size == 0 {
		a.Size = size
	}
	ctx := within(t)
	i, err := d.Connect(ctx, &a)
	t.Must(err, "connect")
	h := &held{T: t, d: d, i: i}
	t.Cleanup(func() {
		if info, err := d.Info(i); err == nil && info.PID != 0 {
			h.release()
		}
	})
	h.info, err = kernel.AwaitReady(ctx, d, i)
	t.Must(err, "ready")
	return h
}

// release detaches the device and waits until it is gone.
func (h *held) release() {
	ctx := within(h.T)
	h.Must(h.d.Disconnect(ctx, h.i), "disconnect")
	if info, err := kernel.AwaitGone(ctx, h.d, h.i); err != nil {
		kernel.System{}.AddOpeners(info)
		h.Fatalf("%v; users: %q", err, info.Users())
	}
}

// kernelAttach attaches by both interfaces in every way.
func kernelAttach(t *guest.T) {
	const size = 8*mib + 512
	for _, ioctl := range []bool{false, true} {
		d := openDriver(t, ioctl)
		for _, way := range []string{"tcp", "unix", "pair"} {
			for _, n := range []int{1, 4} {
				dev := disk(t, size)
				l := guest.ServeLocal(t, dev, false)
				h := hold(t, d, l, way, n, kernel.Attach{Index: 1, Identifier: "here"})
				what := fmt.Sprintf("ioctl %t, %s, %d connections", ioctl, way, n)
				if h.i != 1 || h.info.Size != size || h.info.BlockSize != 512 || h.info.PID != os.Getpid() || h.info.ReadOnly {
					t.Errorf("%s: %+v (this is process %d)", what, h.info, os.Getpid())
				}
				if want := map[bool]string{false: "here"}[ioctl]; h.info.Identifier != want {
					t.Errorf("%s: the identifier is %q, want %q", what, h.info.Identifier, want)
				}
				s, err := d.Status(within(t), 1)
				if err != nil || !s.Connected {
					t.Errorf("%s: status %+v, %v", what, s, err)
				}
				h.use(dev, uint64(n))
				if _, err := d.Connect(within(t), &kernel.Attach{Index: 1, Size: size, Sockets: firstOf(l.Sockets(way, 1))}); !errors.Is(err, kernel.ErrBusy) {
					t.Errorf("%s: attached twice: %v", what, err)
				}
				h.release()
				if s, err := d.Status(within(t), 1); err != nil || s.Connected {
					t.Errorf("%s: status after it: %+v, %v", what, s, err)
				}
				if err := d.Disconnect(within(t), 1); !errors.Is(err, kernel.ErrNotConnected) {
					t.Errorf("%s: detach again: %v", what, err)
				}
			}
		}
	}
}

// firstOf returns the sockets of Local.Sockets.
func firstOf(list []*os.File, _ proto.TransmissionFlags, _ int64) []*os.File { return list }

// use writes to the device, reads, discards, and looks at what is behind it.
func (h *held) use(dev *block.Device, seed uint64) {
	f := guest.Direct(h.T, h.i.Path())
	defer f.Close()
	first, last := guest.Filled(2*seed, 512<<10), guest.Filled(2*seed+1, 512)
	end := h.info.Size - 512
	guest.WriteAt(h.T, f, first, 4096)
	guest.WriteAt(h.T, f, last, end)
	guest.ReadBack(h.T, f, first, 4096)
	h.Must(f.Sync(), "flush")
	got := make([]byte, len(first))
	h.Must(dev.ReadAt(h.Context(), got, 4096), "read")
	if !bytes.Equal(got, first) {
		h.Errorf("what was written to %s is not behind it", h.i.Path())
	}
	h.Must(dev.ReadAt(h.Context(), got[:512], end), "read")
	if !bytes.Equal(got[:512], last) {
		h.Errorf("what was written to the end of %s is not behind it", h.i.Path())
	}
	const gone = 64 << 10
	harness.Run(h.T, "blkdiscard", "-o", "8192", "-l", strconv.Itoa(gone), h.i.Path())
	clear(first[4096:][:gone])
	h.Must(dev.ReadAt(h.Context(), got, 4096), "read")
	if !bytes.Equal(got, first) {
		h.Errorf("what was discarded on %s, and nothing else, is not gone behind it", h.i.Path())
	}
}

// kernelPartitions attaches a disk with partitions, which appear, and go.
func kernelPartitions(t *guest.T) {
	for _, ioctl := range []bool{false, true} {
		dev := disk(t, 16*mib)
		t.Must(dev.WriteAt(t.Context(), partitionTable(2048, 4096, 8192, 16384), 0, 0), "partition table")
		l := guest.ServeLocal(t, dev, false)
		d := openDriver(t, ioctl)
		h := hold(t, d, l, "pair", 2, kernel.Attach{Any: true})
		before, err := d.Info(h.i)
		t.Must(err, "info")
		t.Must(d.Rescan(within(t), h.i), "rescan")
		info, err := d.Info(h.i)
		t.Must(err, "info")
		t.Logf("ioctl %t: partitions %q without a look at the device, %q after it", ioctl, before.Partitions, info.Partitions)
		want := fmt.Sprintf("[%sp1 %sp2]", h.i.Name(), h.i.Name())
		if got := fmt.Sprint(info.Partitions); got != want {
			t.Errorf("ioctl %t: partitions %s, want %s", ioctl, got, want)
		}
		p2 := h.i.Path() + "p2"
		if got := guest.Size(t, p2); got != 16384*512 {
			t.Errorf("%s has %d bytes", p2, got)
		}
		// Somebody who has a partition open is seen, and keeps the device from going.
		f := guest.Open(t, p2, os.O_RDONLY)
		kernel.System{}.AddOpeners(info)
		if len(info.Openers) != 1 || info.Openers[0].PID != os.Getpid() {
			t.Errorf("openers %+v", info.Openers)
		}
		t.Must(d.Disconnect(within(t), h.i), "disconnect")
		short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		info, err = kernel.AwaitGone(short, d, h.i)
		cancel()
		t.Logf("ioctl %t: while a partition is open: %+v, %v", ioctl, info, err)
		if err == nil {
			t.Errorf("ioctl %t: gone while a partition is open: %+v", ioctl, info)
		}
		f.Close()
		left, err := d.Info(h.i)
		t.Must(err, "info")
		t.Logf("ioctl %t: when it is closed: process %d, size %d, partitions %q", ioctl, left.PID, left.Size, left.Partitions)
		_, err = kernel.AwaitGone(within(t), d, h.i)
		t.Must(err, "gone")
		if _, err := os.Stat(p2); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("ioctl %t: %s is there: %v", ioctl, p2, err)
		}
	}
}

// partitionTable returns a sector with partitions, each given by its first sector and
// its length in sectors.
func partitionTable(numbers ...uint32) []byte {
	b := make([]byte, 512)
	for i := 0; i+1 < len(numbers); i += 2 {
		entry := b[446+8*i:]
		entry[4] = 0x83
		binary.LittleEndian.PutUint32(entry[8:], numbers[i])
		binary.LittleEndian.PutUint32(entry[12:], numbers[i+1])
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}

// kernelBlocks attaches with all block sizes, and read-only; neither may outlive the
// attachment.
func kernelBlocks(t *guest.T) {
	for _, ioctl := range []bool{false, true} {
		d := openDriver(t, ioctl)
		for _, size := range []int64{0, 1024, 2048, 4096} {
			l := guest.ServeLocal(t, disk(t, 8*mib), false)
			h := hold(t, d, l, "pair", 1, kernel.Attach{BlockSize: size})
			if want := max(size, 512); h.info.BlockSize != want {
				t.Errorf("ioctl %t: blocks of %d bytes, want %d", ioctl, h.info.BlockSize, want)
			}
			h.release()
		}
		l := guest.ServeLocal(t, disk(t, mib), true)
		h := hold(t, d, l, "pair", 1, kernel.Attach{})
		if !h.info.ReadOnly {
			t.Errorf("ioctl %t: not read-only", ioctl)
		}
		// A mark that others make, as the reference's client does.
		t.Must(kernel.System{}.SetReadOnly(h.i, true), "mark")
		h.release()
		l = guest.ServeLocal(t, disk(t, mib), false)
		h = hold(t, d, l, "pair", 1, kernel.Attach{})
		if info, err := d.Info(h.i); err != nil || info.ReadOnly {
			t.Errorf("ioctl %t: read-only ever after: %+v, %v", ioctl, info, err)
		}
		f := guest.Direct(t, h.i.Path())
		guest.WriteAt(t, f, guest.Filled(3, 4096), 0)
		f.Close()
		h.release()
		_, err := d.Connect(within(t), &kernel.Attach{Size: mib, BlockSize: 65536, Sockets: firstOf(l.Sockets("pair", 1))})
		t.Logf("ioctl %t: blocks of 64 KiB: %v", ioctl, err)
	}
}

// kernelRounds attaches and detaches a hundred times. Nothing may be left over.
func kernelRounds(t *guest.T) {
	l := guest.ServeLocal(t, disk(t, mib), false)
	for _, ioctl := range []bool{false, true} {
		d := openDriver(t, ioctl)
		var before, threads int
		for round := range 50 {
			sockets, flags, size := l.Sockets("pair", 2)
			a := kernel.Attach{Any: true, Size: size, Flags: flags, Sockets: sockets}
			i, err := d.Connect(within(t), &a)
			t.Must(err, "connect")
			for _, s := range sockets {
				s.Close()
			}
			_, err = kernel.AwaitReady(within(t), d, i)
			t.Must(err, "ready")
			if i != 0 {
				t.Fatalf("round %d: the device is %s: those before have not gone", round, i.Name())
			}
			t.Must(d.Disconnect(within(t), i), "disconnect")
			_, err = kernel.AwaitGone(within(t), d, i)
			t.Must(err, "gone")
			if round == 5 { // all that is made once is there
				before, threads = descriptors(t), runtime.NumGoroutine()
			}
		}
		defer func() {
			if t.Failed() {
				stacks := make([]byte, 64<<10)
				t.Logf("ioctl %t: %d descriptors, %d goroutines; there were %d and %d\n%s", ioctl,
					descriptors(t), runtime.NumGoroutine(), before, threads, stacks[:runtime.Stack(stacks, true)])
			}
		}()
		t.Await("all is closed", func() bool { return descriptors(t) <= before && runtime.NumGoroutine() <= threads })
		list, err := d.StatusAll(within(t))
		t.Must(err, "status")
		for _, s := range list {
			if s.Connected {
				t.Errorf("ioctl %t: %s is connected", ioctl, s.Index.Name())
			}
		}
		if len(list) != 4 {
			t.Errorf("ioctl %t: %d devices: %+v", ioctl, len(list), list)
		}
	}
}

// descriptors counts what this process has open.
func descriptors(t *guest.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	t.Must(err, "descriptors")
	return len(list)
}
