package memlock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Lock prepares this process; see the comment of the package. Call it once the process is
// what it will be: after it has gone to the background, before it attaches the device.
// It fails only if the options make no sense.
func Lock(o Options) ([]Warning, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.OOMScore == 0 {
		o.OOMScore = -1000
	}
	s := system{proc: "/proc"}
	steps := []func(*Options) *Warning{
		lockMemory, // first: what is taken after it is locked
		fillHeap,
		startThreads,
		touchAll,
		s.setScore,
		flushIO,
		reachReserve,
		s.checkReserve,
	}
	if o.SystemOnly {
		steps = steps[len(steps)-1:]
	}
	var list []Warning
	for _, step := range steps {
		if w := step(&o); w != nil {
			list = append(list, *w)
		}
	}
	return list, nil
}

// lockMemory locks what is there and what will come, and loads the program.
func lockMemory(*Options) *Warning {
	w := &Warning{
		What:   "lock memory",
		Advice: "pages of this process may be swapped out to the device that it keeps; run it as root, or with CAP_IPC_LOCK and LimitMEMLOCK=infinity",
	}
	if w.Err = mayLock(); w.Err != nil {
		return w
	}
	if w.Err = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); w.Err != nil {
		return w
	}
	if w.Err = loadProgram(); w.Err != nil {
		w.What = "load the whole program"
		return w
	}
	return nil
}

// mayLock reports whether any amount of memory can be locked. With a limit, MCL_FUTURE
// would make the runtime fail when it needs memory later, and end the process.
func mayLock() error {
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited) == nil {
		return nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	if caps[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0 {
		return nil
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return fmt.Errorf("getrlimit: %w", err)
	}
	if l.Cur != unix.RLIM_INFINITY {
		return fmt.Errorf("%d bytes are allowed: %w", l.Cur, unix.EPERM)
	}
	return nil
}

// loadProgram brings the whole program into memory, and keeps it there: mlock, other
// than mlockall with MCL_ONFAULT, reads what is not there yet.
func loadProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for _, m := range mappingsOf(maps, func(path, access string) bool { return path == exe && access[0] == 'r' }) {
		if _, _, e := unix.Syscall(unix.SYS_MLOCK, m.start, m.end-m.start, 0); e != 0 {
			return fmt.Errorf("mlock of %d bytes of %s: %w", m.end-m.start, exe, e)
		}
	}
	return nil
}

// mapping is a stretch of addresses.
type mapping struct{ start, end uintptr }

// mappingsOf returns those that match, from the text of /proc/PID/maps. They are asked for
// by the path of a file, "" for none, and the access, such as "rw-p".
func mappingsOf(maps []byte, match func(path, access string) bool) []mapping {
	var list []mapping
	for line := range strings.Lines(string(maps)) {
		// ADDRESSES ACCESS OFFSET DEVICE INODE      PATH; the path may have spaces.
		f := strings.SplitN(strings.TrimSpace(line), " ", 6)
		if len(f) < 5 || len(f[1]) != 4 {
			continue
		}
		path := ""
		if len(f) == 6 {
			path = strings.TrimSpace(f[5])
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, strconv.IntSize)
		end, err2 := strconv.ParseUint(to, 16, strconv.IntSize)
		if errors.Join(err1, err2) == nil && start < end && match(path, f[1]) {
			list = append(list, mapping{uintptr(start), uintptr(end)})
		}
	}
	return list
}

// touchAll makes pages of all memory that the runtime uses beside what fillHeap has
// taken: its variables and tables, of which many pages were only read by now, or not at
// all. One of these, written for the first time, would wait for memory. Of what is large,
// only the beginning is used.
func touchAll(*Options) *Warning {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return &Warning{What: "touch all memory of the process", Err: err, Advice: "it may need some when there is none"}
	}
	limit := uintptr(debug.SetMemoryLimit(-1))
	inHeap := uintptr(unsafe.Pointer(new([64]byte)))
	for _, m := range mappingsOf(maps, func(path, access string) bool { return access == "rw-p" && !strings.HasPrefix(path, "/") }) {
		n := m.end - m.start
		switch {
		case m.start <= inHeap && inHeap < m.end:
			n = min(n, limit+limit/4) // it has gaps
		case n > table:
			n = table / 4
		}
		// Kernels before 5.14 do not know it. There mlock does the same.
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, m.start, n, unix.MADV_POPULATE_WRITE); e == unix.EINVAL {
			unix.Syscall(unix.SYS_MLOCK, m.start, n, 0)
		}
	}
	return nil
}

// table is the size of the runtime's largest tables that are used as a whole, in bytes.
const table = 4 << 20

// fillHeap takes the heap's memory, and has it collected when it is full and not before.
// The runtime keeps as much as was in use when it collected last, free or not. So what is
// taken here is left for the collection that comes when the heap is full: an earlier one
// would find little in use, and give the rest back.
func fillHeap(o *Options) *Warning {
	want := o.Heap
	if want == 0 {
		want = DefaultHeap
	}
	runtime.GC()
	used := inUse()
	want = max(want, used+headroom)
	debug.SetMemoryLimit(want)
	debug.SetGCPercent(-1)
	// At 95 % it begins to give memory back all the same.
	if n := want/10*9 - used; n > 0 {
		fill(int(n))
	}
	return nil
}

// inUse returns how many bytes the runtime holds.
func inUse() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64())
}

// fill takes n bytes of memory, touches every page, and lets them go.
func fill(n int) {
	p := make([]byte, n)
	for i := 0; i < n; i += 4096 {
		p[i] = 1
	}
	runtime.KeepAlive(p)
}

// spareThreads are how many threads the runtime has beyond those that it needs already.
const spareThreads = 16

// startThreads makes the runtime start threads, which it keeps: it needs one for each
// system call that waits, and starting one later takes memory.
func startThreads(*Options) *Warning {
	var started, ended sync.WaitGroup
	started.Add(spareThreads)
	for range spareThreads {
		ended.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread() // else the thread would end
			started.Done()
			started.Wait()
		})
	}
	ended.Wait()
	return nil
}

// reachReserve gives all threads a real-time priority, the lowest. To such tasks the
// kernel gives memory also from the reserve that it holds back from others. What it takes
// to answer the kernel, above all, is taken on behalf of this process.
func reachReserve(*Options) *Warning {
	priority := int32(1)
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_RR, uintptr(unsafe.Pointer(&priority)))
	if e == 0 {
		return nil
	}
	w := &Warning{
		What: "ask for a real-time priority, which opens the kernel's reserve of memory", Err: e,
		Advice: "what this process needs to answer may not be there when memory is short; run it as root, or with CAP_SYS_NICE",
	}
	if errors.Is(e, syscall.ENOTSUP) {
		w.Advice = "this program was built with cgo; build it with CGO_ENABLED=0"
	}
	return w
}

// system is the part of /proc that is read and written.
type system struct{ proc string }

// setScore sets the process's chance to be killed when memory is short.
func (s system) setScore(o *Options) *Warning {
	// An existing file, never a new one.
	f, err := os.OpenFile(filepath.Join(s.proc, "self/oom_score_adj"), os.O_WRONLY, 0)
	if err == nil {
		_, err = fmt.Fprint(f, o.OOMScore)
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		return nil
	}
	return &Warning{
		What: "set the out-of-memory score to " + strconv.Itoa(o.OOMScore), Err: err,
		Advice: "the kernel may end this process when memory is short, and the device with it; run it as root, or with OOMScoreAdjust in its systemd unit",
	}
}

// flushIO marks all threads. A thread hands the mark on to those that it starts.
func flushIO(*Options) *Warning {
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0)
	if e == 0 {
		return nil
	}
	w := &Warning{
		What: "mark the process as one that memory depends on (PR_SET_IO_FLUSHER)", Err: e,
		Advice: "the kernel may make it wait for memory that only it can set free; run it as root, or with CAP_SYS_RESOURCE",
	}
	switch {
	case errors.Is(e, syscall.ENOTSUP):
		w.Advice = "this program was built with cgo; build it with CGO_ENABLED=0"
	case errors.Is(e, syscall.EINVAL):
		w.Advice = "it came with Linux 5.6; kernels before that may come to a halt when memory is short"
	}
	return w
}

// checkReserve looks at what the kernel keeps for packets that arrive.
func (s system) checkReserve(o *Options) *Warning {
	path := filepath.Join(s.proc, "sys/vm/min_free_kbytes")
	w := &Warning{What: "look at vm.min_free_kbytes", Advice: "answers from the network may not find memory when it is short"}
	have, err := readNumber(path)
	var total int64
	if err == nil {
		total, err = s.memory()
	}
	if err != nil {
		w.Err = err
		return w
	}
	want := reserve(total)
	if have >= want {
		return nil
	}
	w.What = fmt.Sprintf("vm.min_free_kbytes is %d", have)
	w.Advice = fmt.Sprintf("answers from the network may not find memory when it is short, and swap comes to a halt; set it with: sysctl vm.min_free_kbytes=%d (nbd-client -swap --raise-reserve does that)", want)
	if !o.RaiseReserve {
		return w
	}
	if w.Err = os.WriteFile(path, strconv.AppendInt(nil, want, 10), 0); w.Err == nil {
		return nil
	}
	return w
}

// reserve returns what vm.min_free_kbytes should be at least in a machine with so many
// KiB: what was enough in a machine of 256 MiB, and in smaller ones a tenth.
func reserve(total int64) int64 { return min(24576, total/10) }

// memory returns how many KiB of memory the system has.
func (s system) memory() (int64, error) {
	path := filepath.Join(s.proc, "meminfo")
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil || n <= 0 {
				return 0, fmt.Errorf("%s: not understood: %q", path, line)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s does not tell MemTotal", path)
}

// readNumber reads a file that holds one number.
func readNumber(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
