// Package memlock prepares a process on which the memory of the system depends.
//
// When a kernel device is swap, memory becomes free only if its pages reach the server.
// A process that has a part in this, by relaying the bytes or by serving them on the same
// machine, must never wait for memory that its own work would set free. Nor must the one
// that reconnects the device. [Lock] does what user space can do about it:
//
//   - Its pages stay in memory (mlockall with MCL_ONFAULT: those that are used, not all
//     that the Go runtime reserves), and its program is loaded as a whole, since what
//     reconnects a device may never have run before, and may lie on that device.
//   - Its heap is of a fixed size, taken at once and kept, and collected when it is full;
//     its variables and tables are taken, too.
//   - The kernel does not kill it to get memory (oom_score_adj).
//   - What the kernel allocates on its behalf does not wait for write-back
//     (PR_SET_IO_FLUSHER, on every thread and those to come), and it is not slowed down
//     for pages that others have made dirty.
//   - It may take from the memory that the kernel holds in reserve: tasks with a real-time
//     priority may, so its threads get one, the lowest.
//   - The runtime has threads in stock, since starting one takes memory.
//
// Each of these needs rights, and each helps without the others; so what cannot be done
// is a [Warning], not an error.
//
// One thing remains that is the system's, not the process's. Packets that arrive need
// memory before anybody knows that they are answers which make memory free. The kernel
// keeps vm.min_free_kbytes for such cases, by default too few on small machines: in a
// machine of 256 MiB with Linux 6.1, swap over NBD came to a halt with the default of
// 2 MiB, and worked with 24 MiB. Lock says so, and raises it if it is told to.
//
// Do not use it in a process that maps images into memory: all that is touched of them
// would stay. One that serves swap itself, on the same machine, must do so past the page
// cache (file:PATH,direct): otherwise each page that is swapped out takes another one.
//
// Processes that this one starts inherit the priority, the mark and the score.
package memlock

import (
	"fmt"
)

// DefaultHeap is what the Go runtime may use if Options do not say: 16 MiB.
const DefaultHeap = 16 << 20

// headroom is what there must be at least beyond what the process uses already, in bytes.
const headroom = 8 << 20

// Options say how a process is prepared. The zero value is a good default.
type Options struct {
	// Heap is what the Go runtime may use, in bytes: its heap, stacks and tables. It is
	// taken at once and kept, and nothing is collected before it is full. 0 means
	// DefaultHeap. It is raised to what is in use by now and 8 MiB more. Should the
	// program need more it gets more, and spends up to half of its time on collecting.
	Heap int64
	// OOMScore is written to /proc/self/oom_score_adj: from -1000, never to be killed, to
	// 1000. 0 means -1000. Processes that this one starts have the same.
	OOMScore int
	// RaiseReserve raises vm.min_free_kbytes where it is too low. It is the whole
	// system's, and stays until the system is started again.
	RaiseReserve bool
	// SystemOnly leaves the process as it is, because it will not stay: only the reserve is
	// looked at.
	SystemOnly bool
}

// check refuses options that make no sense.
func (o *Options) check() error {
	if o.Heap < 0 {
		return fmt.Errorf("memlock: a heap of %d bytes", o.Heap)
	}
	if o.OOMScore < -1000 || o.OOMScore > 1000 {
		return fmt.Errorf("memlock: an out-of-memory score of %d is not between -1000 and 1000", o.OOMScore)
	}
	return nil
}

// Warning says what could not be done, or what the system lacks.
type Warning struct {
	What   string // "lock memory"
	Err    error  // nil if nothing went wrong, but something is missing
	Advice string // what to do about it
}

// String returns the warning as a line of a log.
func (w Warning) String() string {
	if w.Err == nil {
		return w.What + "; " + w.Advice
	}
	return fmt.Sprintf("%s: %v; %s", w.What, w.Err, w.Advice)
}
