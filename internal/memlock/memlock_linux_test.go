package memlock

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/internal/testgate"
)

// childVariable makes the test binary the process that is prepared: its value is the
// Options.
const childVariable = "MEMLOCK_TEST_OPTIONS"

// report is what a prepared process finds out about itself.
type report struct {
	Warnings []string
	Locked   bool   // VmLck of /proc/self/status is more than nothing
	Program  string // the mappings of the program that are not wholly in memory
	Score    string // /proc/self/oom_score_adj
	Threads  int    // how many were asked
	Flushers int    // how many of them are marked
	RealTime int    // how many of all threads have a real-time priority
	All      int    // how many there are
	Limit    int64  // of the runtime's memory
	Resident int64  // bytes of the heap's memory in use or free, not given back
	Later    int64  // the same, after more was used and collected
}

func TestMain(m *testing.M) {
	text := os.Getenv(childVariable)
	if text == "" {
		status := m.Run()
		os.RemoveAll(childDir)
		os.Exit(status)
	}
	var o Options
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		var r *report
		if r, err = prepare(o); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(r)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// prepare calls Lock and looks at what has become of the process.
func prepare(o Options) (*report, error) {
	before := threads(4) // which there are already
	defer before.end()
	list, err := Lock(o)
	if err != nil {
		return nil, err
	}
	r := &report{Limit: debug.SetMemoryLimit(-1), Resident: inUse()}
	for _, w := range list {
		r.Warnings = append(r.Warnings, w.String())
	}
	after := threads(8)
	defer after.end()
	for _, flag := range append(before.ask(), after.ask()...) {
		r.Threads++
		r.Flushers += flag
	}
	score, err1 := os.ReadFile("/proc/self/oom_score_adj")
	status, err2 := os.ReadFile("/proc/self/status")
	smaps, err3 := os.ReadFile("/proc/self/smaps")
	exe, err4 := os.Readlink("/proc/self/exe")
	r.Score = strings.TrimSpace(string(score))
	r.Locked = strings.Contains(string(status), "VmLck:") && !strings.Contains(string(status), "VmLck:\t       0 kB")
	r.Program = absent(string(smaps), exe)
	tasks, err5 := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		stat, err := os.ReadFile("/proc/self/task/" + task.Name() + "/stat")
		if err != nil {
			return nil, err
		}
		// The name may hold anything; the policy is the 41st field.
		_, rest, _ := strings.Cut(string(stat), ") ")
		r.All++
		if f := strings.Fields(rest); f[38] == "2" {
			r.RealTime++
		}
	}
	for range 200 {
		fill(1 << 20)
	}
	r.Later = inUse()
	return r, errors.Join(err1, err2, err3, err4, err5)
}

// group is a number of threads that answer questions.
type group struct {
	questions chan chan int
	n         int
	ready     sync.WaitGroup
}

// threads starts n threads.
func threads(n int) *group {
	g := &group{questions: make(chan chan int), n: n}
	g.ready.Add(n)
	for range n {
		go func() {
			runtime.LockOSThread()
			g.ready.Done()
			for answer := range g.questions {
				flag, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
				if err != nil {
					flag = 0
				}
				answer <- flag
				g.ready.Wait() // so that each thread is asked once
			}
		}()
	}
	g.ready.Wait()
	return g
}

// ask returns each thread's mark.
func (g *group) ask() []int {
	g.ready.Add(1)
	answers := make(chan int, g.n)
	for range g.n {
		g.questions <- answers
	}
	var list []int
	for range g.n {
		list = append(list, <-answers)
	}
	g.ready.Done()
	return list
}

func (g *group) end() { close(g.questions) }

// absent returns the mappings of a file of which something is not in memory, by the text
// of /proc/PID/smaps.
func absent(smaps, path string) string {
	var list []string
	var head, size string
	for line := range strings.Lines(smaps) {
		key, value, _ := strings.Cut(line, ":")
		switch {
		case strings.Contains(strings.SplitN(line, " ", 2)[0], "-"):
			head = strings.TrimSpace(line)
		case key == "Size":
			size = strings.TrimSpace(value)
		case key == "Rss" && strings.HasSuffix(head, " "+path) && strings.TrimSpace(value) != size:
			list = append(list, head+" of "+size+" has "+strings.TrimSpace(value))
		}
	}
	return strings.Join(list, "\n")
}

// childDir holds what child has built.
var childDir string

// child builds the tests without cgo, with which threads could not be marked, and returns
// the path.
var child = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "memlock")
	if err != nil {
		return "", err
	}
	childDir = dir
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "memlock.test")
	cmd := exec.Command("go", "test", "-c", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the tests without cgo: %w\n%s", err, out)
	}
	return path, nil
})

// run runs a prepared process.
func run(t *testing.T, o Options, attr *syscall.SysProcAttr) *report {
	t.Helper()
	path, err := child()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), childVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	return &r
}

// allowed reports whether this process has a capability, as its children have it.
func allowed(t *testing.T, capability int) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		t.Fatal(err)
	}
	return caps[0].Effective&(1<<capability) != 0
}

// TestLock prepares a process of root. In a container root may lack rights, and must be
// told so; a scenario of test/vm has them all.
func TestLock(t *testing.T) {
	testgate.Requires(t, testgate.Root())
	r := run(t, Options{}, nil)
	all := strings.Join(r.Warnings, "\n")
	lock, resource := allowed(t, unix.CAP_IPC_LOCK), allowed(t, unix.CAP_SYS_RESOURCE)
	t.Logf("may lock: %t, has CAP_SYS_RESOURCE: %t", lock, resource)
	if may := lock || resource || lockLimit(t) == unix.RLIM_INFINITY; may != r.Locked || may == strings.Contains(all, "lock memory: ") {
		t.Errorf("locked: %t; the warnings:\n%s", r.Locked, all)
	}
	if r.Locked && r.Program != "" {
		t.Errorf("of the program is not in memory:\n%s", r.Program)
	}
	if (r.Score == "-1000") != resource || resource == strings.Contains(all, "score to -1000: ") {
		t.Errorf("the out-of-memory score is %s; the warnings:\n%s", r.Score, all)
	}
	marked := 0
	if resource {
		marked = 12
	}
	if r.Threads != 12 || r.Flushers != marked || resource == strings.Contains(all, "PR_SET_IO_FLUSHER") {
		t.Errorf("of %d threads %d are marked; the warnings:\n%s", r.Threads, r.Flushers, all)
	}
	if r.All < 4+spareThreads { // those of the test that were there before
		t.Errorf("there are %d threads", r.All)
	}
	if !allowed(t, unix.CAP_SYS_NICE) && r.RealTime != 0 { // with it, the system may still say no
		t.Errorf("of %d threads %d have a real-time priority, which is not allowed", r.All, r.RealTime)
	}
	if r.RealTime != 0 && r.RealTime != r.All || (r.RealTime == 0) != strings.Contains(all, "real-time") {
		t.Errorf("of %d threads %d have a real-time priority; the warnings:\n%s", r.All, r.RealTime, all)
	}
	checkHeap(t, r, DefaultHeap)

	r = run(t, Options{Heap: 40 << 20, OOMScore: 500}, nil) // to be killed sooner is everybody's right
	if r.Score != "500" {
		t.Errorf("the out-of-memory score is %s", r.Score)
	}
	checkHeap(t, r, 40<<20)
}

// checkHeap wants the heap to have been taken, kept, and not to have grown without bound.
// It may grow past its limit for as long as a collection takes.
func checkHeap(t *testing.T, r *report, want int64) {
	t.Helper()
	if r.Limit != want {
		t.Errorf("the limit is %d bytes, want %d", r.Limit, want)
	}
	for _, n := range []int64{r.Resident, r.Later} {
		if n < want/4*3 || n > want*2 {
			t.Errorf("the runtime has %d bytes at first and %d later; want near %d", r.Resident, r.Later, want)
			break
		}
	}
}

// lockLimit returns how many bytes a process without rights may lock.
func lockLimit(t *testing.T) uint64 {
	t.Helper()
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		t.Fatal(err)
	}
	return l.Cur
}

// TestLockWithoutRights prepares a process that may do nothing. It must say so, and work.
func TestLockWithoutRights(t *testing.T) {
	var attr *syscall.SysProcAttr
	if os.Geteuid() == 0 {
		attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	r := run(t, Options{}, attr)
	all := strings.Join(r.Warnings, "\n")
	wanted := []string{"score to -1000: ", "PR_SET_IO_FLUSHER"}
	if limit := lockLimit(t); limit != unix.RLIM_INFINITY {
		wanted = append(wanted, "lock memory: ")
	} else if !r.Locked {
		t.Error("nothing is locked, although it may be")
	}
	for _, want := range wanted {
		if !strings.Contains(all, want) {
			t.Errorf("no warning of %q:\n%s", want, all)
		}
	}
	if r.Flushers != 0 {
		t.Errorf("%d threads are marked", r.Flushers)
	}
	checkHeap(t, r, DefaultHeap)
}

func TestMappings(t *testing.T) {
	const maps = `00400000-00600000 r-xp 00000000 fe:00 1234                       /a b/prog
00600000-00700000 r--p 00200000 fe:00 1234                       /a b/prog
00700000-00710000 ---p 00300000 fe:00 1234                       /a b/prog
00710000-00720000 rw-p 00310000 fe:00 1235                       /a b/prog2
c000000000-c004000000 rw-p 00000000 00:00 0
zz-yy r--p 00000000 fe:00 1234                                   /a b/prog
7fff0000-7fff1000 r-xp 00000000 00:00 0                          [vdso]
`
	for _, tt := range []struct {
		match func(path, access string) bool
		want  []mapping
	}{
		{func(path, access string) bool { return path == "/a b/prog" && access[0] == 'r' }, []mapping{{0x400000, 0x600000}, {0x600000, 0x700000}}},
		{func(path, access string) bool { return path == "" && access == "rw-p" }, []mapping{{0xc000000000, 0xc004000000}}},
		{func(path, _ string) bool { return path == "[vdso]" }, []mapping{{0x7fff0000, 0x7fff1000}}},
	} {
		if got := mappingsOf([]byte(maps), tt.match); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("got %x, want %x", got, tt.want)
		}
	}
}

// fakeProc makes a folder as /proc, in a machine with so many KiB of memory.
func fakeProc(t *testing.T, total, reserve string) system {
	t.Helper()
	s := system{proc: t.TempDir()}
	for name, text := range map[string]string{
		"meminfo": "MemTotal:       " + total + " kB\nMemFree: 1 kB\n", "sys/vm/min_free_kbytes": reserve + "\n", "self/oom_score_adj": "0\n",
	} {
		path := filepath.Join(s.proc, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestReserve(t *testing.T) {
	for _, tt := range []struct {
		total, have string
		raise       bool
		want        string // in the file, afterwards
		warning     string
	}{
		{"250000", "2000", false, "2000", "vm.min_free_kbytes=24576 (nbd-client -swap --raise-reserve does that)"},
		{"250000", "2000", true, "24576", ""},
		{"250000", "24576", true, "24576", ""},
		{"16000000", "67584", true, "67584", ""}, // never less
		{"16000000", "100", true, "24576", ""},
		{"100000", "1000", true, "10000", ""},
		{"100000", "9999", false, "9999", "vm.min_free_kbytes=10000"},
		{"none", "1", true, "1", "not understood"},
		{"-1", "1", true, "1", "not understood"},
		{"100000", "many", true, "many", "invalid syntax"},
	} {
		s := fakeProc(t, tt.total, tt.have)
		w := s.checkReserve(&Options{RaiseReserve: tt.raise})
		if (w == nil) != (tt.warning == "") || w != nil && !strings.Contains(w.String(), tt.warning) {
			t.Errorf("%+v: %v", tt, w)
		}
		text, err := os.ReadFile(filepath.Join(s.proc, "sys/vm/min_free_kbytes"))
		if got := strings.TrimSpace(string(text)); err != nil || got != tt.want {
			t.Errorf("%+v: the file has %q, %v", tt, got, err)
		}
	}
	if w := (system{proc: t.TempDir()}).checkReserve(&Options{}); w == nil || !errors.Is(w.Err, fs.ErrNotExist) {
		t.Errorf("without /proc: %v", w)
	}
}

// TestSystemOnly leaves the process as it is.
func TestSystemOnly(t *testing.T) {
	r := run(t, Options{SystemOnly: true}, nil)
	if r.Locked || r.Flushers != 0 || r.RealTime != 0 || r.Score == "-1000" || r.Limit == DefaultHeap {
		t.Errorf("something was done to the process: %+v", r)
	}
	for _, w := range r.Warnings {
		if !strings.Contains(w, "vm.min_free_kbytes") {
			t.Errorf("a warning about the process: %s", w)
		}
	}
}

func TestScore(t *testing.T) {
	s := fakeProc(t, "1", "1")
	if w := s.setScore(&Options{OOMScore: -17}); w != nil {
		t.Error(w)
	}
	if text, err := os.ReadFile(filepath.Join(s.proc, "self/oom_score_adj")); err != nil || !strings.HasPrefix(string(text), "-17") {
		t.Errorf("the file has %q, %v", text, err)
	}
	s.proc = t.TempDir()
	if w := s.setScore(&Options{OOMScore: -17}); w == nil || !errors.Is(w.Err, fs.ErrNotExist) {
		t.Errorf("without the file: %v", w)
	}
}
