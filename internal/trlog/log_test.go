package trlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/proto"
)

// limit bounds waits for what must happen. Nothing is measured by it.
const limit = 60 * time.Second

// openIn returns a Config for a log in a folder of the test.
func openIn(t testing.TB, name string) Config {
	path := filepath.Join(t.TempDir(), name)
	return Config{Name: path, Open: func() (File, error) { return os.OpenFile(path, OpenFlags, OpenMode) }}
}

func mustOpen(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// entry is a record with its data, as a text to compare.
func entries(t testing.TB, log io.Reader) (list []string, err error) {
	t.Helper()
	r := NewReader(log)
	for {
		rec, err := r.Next()
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		switch q := rec.Request; rec.Kind {
		case Request:
			text := fmt.Sprintf("> %d %v %d %d+%d", q.Cookie, strings.TrimPrefix(q.Command.String(), "NBD_CMD_"), q.Flags, q.Offset, q.Length)
			if rec.Data {
				data, err := io.ReadAll(r)
				if err != nil {
					return list, err
				}
				text += " " + sum(data)
			}
			list = append(list, text)
		case Reply:
			list = append(list, fmt.Sprintf("< %d %v", rec.Reply.Cookie, strings.TrimPrefix(rec.Reply.Error.String(), "NBD_")))
		case Setting:
			list = append(list, fmt.Sprintf("data %v", rec.Data))
		case Lost:
			list = append(list, fmt.Sprintf("lost %d", rec.Count))
		default:
			list = append(list, fmt.Sprintf("kind %d", rec.Kind))
		}
	}
}

// sum makes data short enough to compare.
func sum(data []byte) string {
	if len(data) == 0 {
		return "[]"
	}
	return fmt.Sprintf("[%d x %d]", len(data), data[0])
}

func wantEntries(t testing.TB, path string, want ...string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := entries(t, bytes.NewReader(text))
	if err != nil {
		t.Error(err)
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the log holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func write(cookie uint64, off, n uint64) proto.Request {
	return proto.Request{Command: proto.CmdWrite, Cookie: cookie, Offset: off, Length: n}
}

// lent is data that a log may keep, and spoils when it is given back.
type lent struct {
	data     []byte
	returned atomic.Int32
}

func (x *lent) Release() {
	x.returned.Add(1)
	clear(x.data)
}

func TestLog(t *testing.T) {
	cfg := openIn(t, "log")
	cfg.Data = true
	l := mustOpen(t, cfg)
	x := l.Tap(true)
	if !x.Payloads() || l.Tap(false).Payloads() {
		t.Error("a tap says the wrong thing of payloads")
	}
	q := write(1, 512, 1024)
	q.Flags = proto.CmdFlagFUA | proto.CmdFlagPayloadLen
	x.Answered(q, fill(7, 1024), proto.OK)
	x.Begun(proto.Request{Command: proto.CmdRead, Cookie: 2, Length: 4096}, nil, nil)
	long := &lent{data: fill(8, longData)}
	if !x.Begun(write(3, 0, longData), long.data, long) {
		t.Error("long data that may be kept are copied")
	}
	x.Ended(2, proto.OK)
	x.Answered(write(4, 1<<40, 512), nil, proto.ENOSPC) // refused: its payload was dropped
	x.Answered(write(5, 0, 0), nil, proto.OK)
	x.Begun(write(6, 0, 1<<20), fill(9, 1<<20), nil)
	x.Ended(3, proto.EIO)
	x.Ended(6, proto.OK)
	x.Begun(proto.Request{Command: proto.CmdTrim, Cookie: 7, Offset: 4096, Length: 1 << 33}, nil, nil)
	x.Ended(7, proto.OK)
	x.Answered(proto.Request{Command: proto.CmdTrim, Cookie: 8, Length: 1 << 62}, nil, proto.EINVAL)
	x.Begun(proto.Request{Command: proto.CmdBlockStatus, Cookie: 9, Length: 1 << 40}, nil, nil)
	x.Ended(9, proto.OK)
	x.Begun(proto.Request{Command: proto.CmdDisc}, nil, nil)
	if got, want := l.Stats(), (Stats{Records: 21}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if n := long.returned.Load(); n != 1 {
		t.Errorf("what was kept has been given back %d times", n)
	}
	wantEntries(t, cfg.Name,
		"data true",
		"> 1 WRITE 1 512+1024 [1024 x 7]", "< 1 OK",
		"> 2 READ 0 0+4096",
		"> 3 WRITE 0 0+32768 [32768 x 8]",
		"< 2 OK",
		"data false", "> 4 WRITE 0 1099511627776+512", "< 4 ENOSPC",
		"> 5 WRITE 0 0+0", "< 5 OK",
		"data true", "> 6 WRITE 0 0+1048576 [1048576 x 9]",
		"< 3 EIO", "< 6 OK",
		"> 7 TRIM 0 4096+4294901760", "> 7 TRIM 0 4294905856+4294901760", "> 7 TRIM 0 8589807616+131072", "< 7 OK",
		"> 8 TRIM 0 0+4294901760", "< 8 EINVAL",
		"> 9 BLOCK_STATUS 0 0+4294967295", "< 9 OK",
		"> 0 DISC 0 0+0")
}

func TestWithoutData(t *testing.T) {
	cfg := openIn(t, "log")
	l := mustOpen(t, cfg)
	l.Tap(false).Answered(write(1, 0, 512), nil, proto.OK)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	wantEntries(t, cfg.Name, "> 1 WRITE 0 0+512", "< 1 OK") // no setting: it means nothing to the oldest tools
	l.Tap(false).Ended(1, proto.OK)                         // after the end nothing happens
	wantEntries(t, cfg.Name, "> 1 WRITE 0 0+512", "< 1 OK")
}

// TestSoon wants records in the file without anybody asking for them.
func TestSoon(t *testing.T) {
	cfg := openIn(t, "log")
	cfg.Delay = time.Millisecond
	l := mustOpen(t, cfg)
	for i := range uint64(3) {
		l.Tap(false).Ended(i, proto.OK)
		await(t, "the record is in the file", func() bool {
			info, err := os.Stat(cfg.Name)
			return err == nil && info.Size() == int64(i+1)*proto.SimpleReplySize
		})
	}
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("waiting too long until %s", what)
		}
	}
}

// TestContinue goes on with a log, with one that a crash has cut, and not with
// what is no log.
func TestContinue(t *testing.T) {
	cfg := openIn(t, "log")
	cfg.Data = true
	var said strings.Builder
	cfg.Logger = slog.New(slog.NewTextHandler(&said, nil))
	l := mustOpen(t, cfg)
	l.Tap(true).Answered(write(1, 0, 512), fill(1, 512), proto.OK)
	l.Close()
	l = mustOpen(t, cfg)
	l.Tap(true).Answered(write(2, 0, 512), fill(2, 512), proto.OK)
	l.Close()
	want := []string{
		"data true", "> 1 WRITE 0 0+512 [512 x 1]", "< 1 OK",
		"data true", "> 2 WRITE 0 0+512 [512 x 2]", "< 2 OK",
	}
	wantEntries(t, cfg.Name, want...)
	if said.Len() > 0 {
		t.Errorf("it says %q of a whole log", said.String())
	}
	info, err := os.Stat(cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cut  int64 // bytes from the end
		left int   // entries
	}{{1, 5}, {16 + 10, 4}, {16 + 512 + 20, 4}} {
		if err := os.Truncate(cfg.Name, info.Size()-c.cut); err != nil {
			t.Fatal(err)
		}
		said.Reset()
		l = mustOpen(t, cfg)
		l.Close()
		wantEntries(t, cfg.Name, append(append([]string{}, want[:c.left]...), "data true")...)
		if !strings.Contains(said.String(), "was cut off") {
			t.Errorf("it says %q of a log that was cut", said.String())
		}
		if err := os.Remove(cfg.Name); err != nil {
			t.Fatal(err)
		}
		restore(t, cfg)
	}
	if err := os.WriteFile(cfg.Name, []byte("root:x:0:0:root:/root:/bin/bash\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "no transaction log") {
		t.Errorf("another file is continued: %v", err)
	}
	if text, _ := os.ReadFile(cfg.Name); !strings.HasPrefix(string(text), "root:") {
		t.Error("another file was changed")
	}
}

// restore writes the two generations of TestContinue again.
func restore(t *testing.T, cfg Config) {
	t.Helper()
	for i := range uint64(2) {
		l := mustOpen(t, cfg)
		l.Tap(true).Answered(write(i+1, 0, 512), fill(byte(i+1), 512), proto.OK)
		l.Close()
	}
}

// TestReopen rotates a log while it is written.
func TestReopen(t *testing.T) {
	cfg := openIn(t, "log")
	cfg.Data = true
	l := mustOpen(t, cfg)
	x := l.Tap(true)
	x.Answered(write(1, 0, 512), fill(1, 512), proto.OK)
	if err := l.Reopen(); err != nil { // the same file
		t.Error(err)
	}
	x.Answered(write(2, 0, 512), fill(2, 512), proto.OK)
	if err := os.Rename(cfg.Name, cfg.Name+".1"); err != nil {
		if runtime.GOOS == "windows" {
			t.Skip("an open file cannot be renamed here")
		}
		t.Fatal(err)
	}
	x.Answered(write(3, 0, 512), fill(3, 512), proto.OK)
	if err := l.Reopen(); err != nil {
		t.Error(err)
	}
	if err := l.Reopen(); err != nil {
		t.Error(err)
	}
	x.Answered(write(4, 0, 512), fill(4, 512), proto.OK)
	l.Close()
	wantEntries(t, cfg.Name+".1", "data true", "> 1 WRITE 0 0+512 [512 x 1]", "< 1 OK",
		"> 2 WRITE 0 0+512 [512 x 2]", "< 2 OK", "> 3 WRITE 0 0+512 [512 x 3]", "< 3 OK")
	wantEntries(t, cfg.Name, "data true", "> 4 WRITE 0 0+512 [512 x 4]", "< 4 OK")
	if err := l.Reopen(); err == nil {
		wantEntries(t, cfg.Name, "data true", "> 4 WRITE 0 0+512 [512 x 4]", "< 4 OK")
	}
}

// TestReopenFails wants the old file to be used on.
func TestReopenFails(t *testing.T) {
	cfg := openIn(t, "log")
	open, fail := cfg.Open, false
	cfg.Open = func() (File, error) {
		if fail {
			return nil, fs.ErrPermission
		}
		return open()
	}
	l := mustOpen(t, cfg)
	l.Tap(false).Ended(1, proto.OK)
	fail = true
	if err := l.Reopen(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Reopen: %v", err)
	}
	l.Tap(false).Ended(2, proto.OK)
	l.Close()
	wantEntries(t, cfg.Name, "< 1 OK", "< 2 OK")
}

// disk is a File that can be full, or stuck.
type disk struct {
	File
	mu   sync.Mutex
	room int           // bytes that still fit; below 0 means without end
	gate chan struct{} // not nil: each Write waits until it is closed
}

func (d *disk) Write(p []byte) (int, error) {
	d.mu.Lock()
	gate := d.gate
	d.mu.Unlock()
	if gate != nil {
		<-gate
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.room < 0 || len(p) <= d.room {
		if d.room >= 0 {
			d.room -= len(p)
		}
		return d.File.Write(p)
	}
	n, err := d.File.Write(p[:d.room])
	d.room = 0
	return n, errors.Join(err, syscall.ENOSPC)
}

func (d *disk) set(room int, gate chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room, d.gate = room, gate
}

// onDisk puts a disk below a log.
func onDisk(cfg *Config) *disk {
	d := &disk{room: -1}
	open := cfg.Open
	cfg.Open = func() (f File, err error) {
		d.File, err = open()
		return d, err
	}
	return d
}

// said is a log of messages that may be read meanwhile.
type said struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), what)
}

// TestDiskFull fills the disk in the middle of a record. The log must stay
// readable, say once that it cannot be written, and go on when it can.
func TestDiskFull(t *testing.T) {
	cfg := openIn(t, "log")
	cfg.Data = true
	var messages said
	cfg.Logger = slog.New(slog.NewTextHandler(&messages, nil))
	d := onDisk(&cfg)
	l := mustOpen(t, cfg)
	x := l.Tap(true)
	add := func(cookie uint64) {
		x.Answered(write(cookie, 0, 512), fill(byte(cookie), 512), proto.OK)
		l.Flush()
	}
	add(1)
	d.set(100, nil)
	add(2)
	add(3)
	x.Answered(write(4, 0, 512), nil, proto.EPERM) // a setting is lost, too
	l.Flush()
	wantEntries(t, cfg.Name, "data true", "> 1 WRITE 0 0+512 [512 x 1]", "< 1 OK")
	if n := messages.count("cannot be written"); n != 1 {
		t.Errorf("it says %d times that the log cannot be written", n)
	}
	if got := l.Stats(); got != (Stats{Records: 2, Lost: 6}) {
		t.Errorf("%+v", got)
	}
	d.set(-1, nil)
	add(5)
	if n := messages.count("can be written again"); n != 1 {
		t.Errorf("it says %d times that the log can be written again", n)
	}
	l.Close()
	if n := messages.count("is incomplete"); n != 1 {
		t.Errorf("it says %d times that the log is incomplete", n)
	}
	wantEntries(t, cfg.Name, "data true", "> 1 WRITE 0 0+512 [512 x 1]", "< 1 OK",
		"lost 6", "data false", "data true", "> 5 WRITE 0 0+512 [512 x 5]", "< 5 OK")
}

// TestDiskFlaps: a disk that is full now and then is complained of now and then.
func TestDiskFlaps(t *testing.T) {
	cfg := openIn(t, "log")
	var messages said
	cfg.Logger = slog.New(slog.NewTextHandler(&messages, nil))
	d := onDisk(&cfg)
	l := mustOpen(t, cfg)
	x := l.Tap(false)
	fail := func(room int) {
		d.set(room, nil)
		x.Answered(write(1, 0, 512), nil, proto.OK)
		l.Flush() // so that nobody else uses l.w
	}
	l.w.told = time.Now().Add(time.Hour)
	for range 3 {
		fail(10)
		fail(-1)
	}
	fail(10)
	if messages.count("cannot be written") != 0 || messages.count("can be written again") != 0 {
		t.Errorf("it does not stay quiet:\n%s", &messages.b)
	}
	l.w.told = time.Now().Add(-2 * quiet)
	fail(10) // still
	fail(10)
	fail(-1)
	if messages.count("cannot be written") != 1 || messages.count("can be written again") != 1 {
		t.Errorf("want one complaint and its end:\n%s", &messages.b)
	}
	l.Close()
}

// TestStuckDisk has the disk stand still. Whoever logs must not be kept for long,
// memory must be bounded, and what is missing must be marked.
func TestStuckDisk(t *testing.T) {
	cfg := openIn(t, "log")
	cfg.Data, cfg.Buffer, cfg.Patience = true, 1<<20, time.Millisecond
	var messages said
	cfg.Logger = slog.New(slog.NewTextHandler(&messages, nil))
	d := onDisk(&cfg)
	l := mustOpen(t, cfg)
	gate := make(chan struct{})
	d.set(-1, gate)
	x := l.Tap(true)
	const n, long = 200, 256 << 10
	var kept []*lent
	for i := range uint64(n) {
		q := write(i+1, 0, 64<<10)
		if i%10 > 0 {
			x.Answered(q, fill(byte(i), int(q.Length)), proto.OK)
			continue
		}
		q.Length = long
		one := &lent{data: fill(byte(i), long)}
		if x.Begun(q, one.data, one) {
			kept = append(kept, one)
		}
		x.Ended(q.Cookie, proto.OK)
	}
	lost := l.Stats().Lost
	if lost == 0 || lost >= 2*n {
		t.Errorf("%d of %d records were lost", lost, 2*n)
	}
	l.mu.Lock()
	if most := cfg.Buffer + long + 2*pieceSize; l.queued > most {
		t.Errorf("%d bytes are held, want %d at most", l.queued, most)
	}
	l.mu.Unlock()
	await(t, "it was said", func() bool { return messages.count("does not keep up") == 1 })
	d.set(-1, nil)
	close(gate)
	await(t, "the disk keeps up again", func() bool { return messages.count("keeps up again") == 1 })
	x.Ended(1000, proto.OK)
	l.Close()
	f, err := os.Open(cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := entries(t, f)
	if err != nil {
		t.Error(err)
	}
	marked := uint64(0)
	for _, x := range list {
		var k uint64
		if _, err := fmt.Sscanf(x, "lost %d", &k); err == nil {
			marked += k
		}
	}
	for i, x := range kept {
		if n := x.returned.Load(); n != 1 {
			t.Errorf("what was kept of long write %d of %d has been given back %d times", i, len(kept), n)
		}
	}
	if marked != lost || list[len(list)-1] != "< 1000 OK" {
		t.Errorf("%d records are missing, %d are said to be; the last one is %q", lost, marked, list[len(list)-1])
	}
}

// TestBound: before records are lost nearly as much fits as the bound says, however long
// writes are and however much memory their buffers take; and no more is held.
func TestBound(t *testing.T) {
	const buffer = 8 << 20
	for _, c := range []struct{ data, memory int }{
		{4 << 10, 4 << 10}, {32 << 10, 64<<10 + 64}, {40 << 10, 64<<10 + 64}, {64 << 10, 64<<10 + 64}, {64<<10 + 65, 256<<10 + 64},
		{70 << 10, 256<<10 + 64}, {128 << 10, 256<<10 + 64}, {256<<10 + 65, 1<<20 + 64}, {1 << 20, 1<<20 + 64},
	} {
		for _, mayKeep := range []bool{true, false} {
			testBound(t, buffer, c.data, c.memory, mayKeep)
		}
	}
}

func testBound(t *testing.T, buffer, n, memory int, mayKeep bool) {
	cfg := openIn(t, "log")
	cfg.Data, cfg.Buffer, cfg.Patience = true, buffer, time.Millisecond
	d := onDisk(&cfg)
	l := mustOpen(t, cfg)
	gate := make(chan struct{})
	d.set(-1, gate)
	x := l.Tap(true)
	accepted, memoryOf := 0, 0
	for i := uint64(1); l.Stats().Lost == 0; i++ {
		one := &lent{data: make([]byte, n, memory)}
		var owner interface{ Release() }
		if mayKeep {
			owner = one
		}
		if x.Begun(write(i, 0, uint64(n)), one.data, owner) {
			memoryOf += memory
		} else {
			memoryOf += n
		}
		accepted += n
		x.Ended(i, proto.OK)
	}
	l.mu.Lock()
	held := l.held()
	l.mu.Unlock()
	if most := buffer + memory + pieceSize; accepted < buffer*3/4 || max(held, memoryOf-n) > most {
		t.Errorf("writes of %d bytes in %d, of which some are kept %v: %d KiB were accepted before one was lost, %d KiB are held, %d are said to be; want %d to %d",
			n, memory, mayKeep, accepted>>10, memoryOf>>10, held>>10, buffer*3/4>>10, most>>10)
	}
	d.set(-1, nil)
	close(gate)
	l.Close()
}

// TestConcurrent logs from many goroutines, with and without data: the log must be
// whole, and each goroutine's records in its order.
func TestConcurrent(t *testing.T) {
	cfg := openIn(t, "log")
	cfg.Buffer = 512 << 10
	cfg.Patience = limit
	l := mustOpen(t, cfg)
	const goroutines, count = 8, 300
	var wg sync.WaitGroup
	for g := range uint64(goroutines) {
		x := l.Tap(g%2 == 0)
		wg.Go(func() {
			for i := range uint64(count) {
				cookie, size := g<<32|i, 1+(i*7919)%3000
				if i%50 == 0 {
					size = longData + i
				}
				var data []byte
				if x.Payloads() {
					data = fill(byte(cookie), int(size))
				}
				if i%3 == 0 {
					x.Answered(write(cookie, g, size), data, proto.OK)
					continue
				}
				one := &lent{data: data}
				if !x.Begun(write(cookie, g, size), data, one) {
					clear(data)
				}
				x.Ended(cookie, proto.OK)
			}
		})
	}
	wg.Wait()
	l.Close()
	f, err := os.Open(cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := NewReader(f)
	var requests, replies [goroutines]uint64
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch rec.Kind {
		case Request:
			g, i := rec.Request.Cookie>>32, rec.Request.Cookie&0xffffffff
			if i != requests[g] || rec.Data != (g%2 == 0) {
				t.Fatalf("request %d of %d at %d, with data %v", i, g, requests[g], rec.Data)
			}
			data, err := io.ReadAll(r)
			if err != nil || rec.Data && !bytes.Equal(data, fill(byte(i), int(rec.Request.Length))) {
				t.Fatalf("the data of request %d of %d: %d bytes, %v", i, g, len(data), err)
			}
			requests[g]++
		case Reply:
			g, i := rec.Reply.Cookie>>32, rec.Reply.Cookie&0xffffffff
			if i != replies[g] || requests[g] != i+1 {
				t.Fatalf("reply %d of %d behind %d", i, g, replies[g])
			}
			replies[g]++
		case Setting:
		default:
			t.Fatalf("a record of kind %d", rec.Kind)
		}
	}
	for g := range requests {
		if requests[g] != count || replies[g] != count {
			t.Errorf("%d requests and %d replies of %d", requests[g], replies[g], g)
		}
	}
}

// TestAllocations wants records to take no memory of their own.
func TestAllocations(t *testing.T) {
	l := mustOpen(t, Config{Name: os.DevNull, Open: func() (File, error) { return os.OpenFile(os.DevNull, os.O_RDWR, 0) }, Patience: limit})
	x, data := l.Tap(true), fill(1, 4096)
	n := testing.AllocsPerRun(2000, func() { x.Answered(write(1, 0, 4096), data, proto.OK) })
	if n > 0.2 { // a piece now and then, when a collection has emptied the pool
		t.Errorf("%v allocations for each record", n)
	}
}

func BenchmarkLog(b *testing.B) {
	for _, size := range []uint64{0, 4096, 256 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			cfg := openIn(b, "log")
			cfg.Patience = limit
			l := mustOpen(b, cfg)
			x, data := l.Tap(true), fill(1, int(size))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				x.Answered(write(1, 0, size), data, proto.OK)
			}
		})
	}
}

// TestContinueLong continues a long log that was closed in order without reading it,
// and one that was not with reading.
func TestContinueLong(t *testing.T) {
	cfg := openIn(t, "log")
	cfg.Data, cfg.Patience = true, limit
	read := int64(0)
	open := cfg.Open
	cfg.Open = func() (File, error) {
		f, err := open()
		return &counted{f, &read}, err
	}
	l := mustOpen(t, cfg)
	data := fill(1, 1<<20)
	for i := range uint64(endLength>>20 + 1) {
		l.Tap(true).Answered(write(i, 0, 1<<20), data, proto.OK)
	}
	l.Close()
	l = mustOpen(t, cfg)
	l.Tap(true).Answered(write(77, 0, 512), fill(2, 512), proto.OK)
	l.Close()
	if read > 100 {
		t.Errorf("%d bytes of a log that was closed were read", read)
	}
	info, err := os.Stat(cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(cfg.Name, info.Size()-proto.RequestSize-1); err != nil { // the mark, and a byte of the reply
		t.Fatal(err)
	}
	l = mustOpen(t, cfg)
	l.Close()
	if read < endLength {
		t.Errorf("only %d bytes of a log that was cut were read", read)
	}
	f, err := os.Open(cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := entries(t, f)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(list[len(list)-5:], "; "); got != "data true; data true; > 77 WRITE 0 0+512 [512 x 2]; data true; data true" {
		t.Errorf("the log ends in %q", got)
	}
}

// counted is a File that counts what is read.
type counted struct {
	File
	n *int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.File.Read(p)
	*c.n += int64(n)
	return n, err
}

// TestNotRead: of a file that is no log only the beginning is read, and of a long one
// that was not closed in order as well, where clients wait.
func TestNotRead(t *testing.T) {
	cfg := openIn(t, "log")
	read := int64(0)
	open := cfg.Open
	cfg.Open = func() (File, error) {
		f, err := open()
		return &counted{f, &read}, err
	}
	l := mustOpen(t, cfg)
	for what, begin := range map[string][]byte{"is no transaction log": make([]byte, proto.SimpleReplySize), "not closed in order": proto.AppendSimpleReply(nil, proto.OK, 1)} {
		if err := os.Rename(cfg.Name, filepath.Join(filepath.Dir(cfg.Name), "old")); err != nil {
			if runtime.GOOS == "windows" {
				t.Skip("an open file cannot be renamed here")
			}
			t.Fatal(err)
		}
		if err := os.WriteFile(cfg.Name, begin, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(cfg.Name, endLength+1); err != nil {
			t.Fatal(err)
		}
		read = 0
		if err := l.Reopen(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("Reopen: %v, want one that says %q", err, what)
		}
		if read > 100<<10 {
			t.Errorf("%d bytes were read of what %s", read, what)
		}
	}
	l.Tap(false).Ended(7, proto.OK)
	l.Close()
	if info, err := os.Stat(cfg.Name); err != nil || info.Size() != endLength+1 {
		t.Errorf("the other file was changed: %v, %v", info, err)
	}
}

// TestSetAside: a long log that was not closed in order is kept as it is, and a new one
// begins, at the start and where clients wait. Where it cannot be renamed the start reads it.
func TestSetAside(t *testing.T) {
	cfg := openIn(t, "log")
	cfg.Data = true
	read := int64(0)
	open := cfg.Open
	cfg.Open = func() (File, error) {
		f, err := open()
		return &counted{f, &read}, err
	}
	var said strings.Builder
	cfg.Logger = slog.New(slog.NewTextHandler(&said, nil))
	asides := 0
	cfg.SetAside = func() (string, error) {
		asides++
		name := fmt.Sprint(cfg.Name, asides)
		return name, os.Rename(cfg.Name, name)
	}
	crashed := func() {
		t.Helper()
		b := appendRequest(nil, &proto.Request{Command: proto.CmdWrite, Length: endLength})
		b = append(appendDataLog(nil, true), b...)
		if err := os.WriteFile(cfg.Name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(cfg.Name, endLength+1); err != nil { // in the middle of the data
			t.Fatal(err)
		}
	}
	begun := func(what string) {
		t.Helper()
		wantEntries(t, cfg.Name, "data true")
		info, err := os.Stat(fmt.Sprint(cfg.Name, asides))
		if err != nil || info.Size() != endLength+1 || read > 200<<10 {
			t.Errorf("%s: the old log: %v, %v; %d bytes were read", what, info, err, read)
		}
		if !strings.Contains(said.String(), fmt.Sprint("kept=", cfg.Name, asides)) {
			t.Errorf("%s: it says %q", what, &said)
		}
	}
	crashed()
	l := mustOpen(t, cfg)
	begun("at the start")
	if err := os.Rename(cfg.Name, cfg.Name+".moved"); err == nil { // not while it is open on Windows
		crashed()
		if err := l.Reopen(); err != nil {
			t.Error(err)
		}
		l.Flush()
		begun("while clients wait")
	}
	l.Close()

	crashed()
	cfg.SetAside = func() (string, error) { return "", fs.ErrPermission }
	read = 0
	mustOpen(t, cfg)
	if info, err := os.Stat(cfg.Name); err != nil || read < endLength || info.Size() >= endLength {
		t.Errorf("a log that cannot be renamed: %v, %v, %d bytes were read", info, err, read)
	}
}

// shut is a File whose Close never returns.
type shut struct {
	File
	forever chan struct{}
}

func (s shut) Close() error {
	<-s.forever
	return s.File.Close()
}

// TestCloseHangs: a disk that does not answer keeps nobody from the end.
func TestCloseHangs(t *testing.T) {
	cfg := openIn(t, "log")
	forever, closed := make(chan struct{}), make(chan struct{})
	open := cfg.Open
	cfg.Open = func() (File, error) {
		f, err := open()
		return shut{f, forever}, err
	}
	l := mustOpen(t, cfg)
	l.ends = time.Millisecond
	go func() {
		defer close(closed)
		if err := l.Close(); err == nil {
			t.Error("a file that cannot be closed was closed")
		}
	}()
	select {
	case <-closed:
	case <-time.After(limit):
		t.Error("Close waits for the disk")
	}
	close(forever)
	<-closed
}

// TestWriteAll writes more pieces, of all lengths, than one call to the system takes, into
// a pipe, which takes but a part of them each time.
func TestWriteAll(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var list [][]byte
	var want []byte
	for i := range 3000 {
		b := fill(byte(i), i%7*i)
		list, want = append(list, b), append(want, b...)
	}
	go func() {
		defer w.Close()
		if n, err := writeAll(w, list); err != nil || n != int64(len(want)) {
			t.Errorf("%d bytes of %d, %v", n, len(want), err)
		}
	}()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came through of %d, %v", len(got), len(want), err)
	}
	r.Close()
	if _, err := writeAll(w, [][]byte{{1}, {2}}); err == nil {
		t.Error("a file that is closed was written")
	}
}
