package scenarios

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
	"nbd.example/nbd/test/vm/replay"
)

// What fsyncs does.
const (
	fsyncWriters = 4
	fsyncRecords = 40 // of each writer
	fsyncPerFile = 8  // records in one file
)

// fsyncs lets writers make records stable, each with its own files, on a file system on a
// kernel device whose server logs every request. From the log follows what a power cut
// of the server would have left at any moment; on that the file system must recover, and
// all records must be that were said to be stable by then.
//
// Who says so stands in the same log: when a record is stable, its writer sends a mark,
// a request to another export with the same log.
func fsyncs(t *guest.T) {
	for _, fs := range guest.FileSystems() {
		switch fs.Type {
		case "ext4":
			fsyncsOn(t, fs, 10)
		case "xfs":
			fsyncsOn(t, fs, 4)
		}
	}
}

func fsyncsOn(t *guest.T, fs guest.FS, cuts int) {
	dir := t.TempDir()
	log, image := filepath.Join(dir, "log"), guest.Empty(t, filepath.Join(dir, "disk.img"), fs.Least)
	fs.Make(t, image)
	base := guest.Empty(t, filepath.Join(dir, "base.img"), fs.Least)
	copyData(t, image, base)
	s := harness.Start(t, harness.Config{TCP: true, Exports: fmt.Sprintf(
		"[disk]\nexportname = %s\ntransactionlog = %s\ndatalog = true\n[marks]\nexportname = null:1E\ntransactionlog = %s\ndatalog = true\n",
		image, log, log)})
	k := guest.Keep{URIs: []string{s.TCPURI("nbd", "disk")}, Connections: 4}.Do(t, 0)
	if got := k.Attr("queue/fua"); got != "1" {
		t.Errorf("queue/fua is %q: the kernel will send no FUA", got)
	}
	m := fs.On(t, k.Path)
	var writers sync.WaitGroup
	for i := range fsyncWriters {
		marks := newMarker(t, s, i)
		writers.Go(func() {
			if err := writeRecords(m.Dir, i, marks); err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	writers.Wait()
	m.Unmount()
	k.Detach()
	s.Stop()

	f := guest.Open(t, log, os.O_RDONLY)
	info, err := f.Stat()
	t.Must(err, "log")
	h, err := replay.Read(f, info.Size(), isMark)
	t.Must(err, "log")
	c := &cutter{t: t, h: h, fs: fs, base: base, image: guest.Empty(t, filepath.Join(dir, "cut.img"), fs.Least)}
	c.device = guest.Loop(t, c.image, 512)
	c.order()
	seed := rand.Uint64()
	t.Logf("%s: %d requests made something stable, %d of them flushes; the log has %d bytes; seed %d",
		fs.Type, len(h.Promises), h.Flushes, info.Size(), seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range cuts {
		// Half of the cuts are right behind an answer that makes something stable, the
		// others right behind a mark.
		at := h.Marks[rnd.IntN(len(h.Marks))].At
		if i%2 == 0 {
			at = c.promiseAfter(rnd)
		}
		c.cut(at, rnd)
	}
	c.blind()
}

// record returns the place and the contents of a record: some bytes, or some blocks.
func record(writer, n int) (name string, data []byte) {
	size := 500 + (n*7919+writer*104729)%24000
	return fmt.Sprintf("w%d/f%d", writer, n/fsyncPerFile), harness.Random(uint64(writer*fsyncRecords+n), size)
}

// writeRecords writes the records of one writer, and marks each one when it is stable.
func writeRecords(dir string, writer int, marks *marker) error {
	home := filepath.Join(dir, fmt.Sprintf("w%d", writer))
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	if err := syncFolders(dir); err != nil {
		return err
	}
	for n := range fsyncRecords {
		name, data := record(writer, n)
		if err := appendStable(filepath.Join(dir, name), data, n/fsyncPerFile%3); err != nil {
			return err
		}
		if n%fsyncPerFile == 0 { // the file is new
			if err := syncFolders(home); err != nil {
				return err
			}
		}
		if err := marks.send(n); err != nil {
			return err
		}
	}
	return nil
}

// appendStable writes at the end of a file, and makes that stable by one of three ways.
func appendStable(path string, data []byte, way int) error {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if way == 0 {
		flags |= unix.O_DSYNC
	}
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.Write(data); err != nil {
		return err
	}
	switch way {
	case 1:
		err = unix.Fdatasync(int(f.Fd()))
	case 2:
		err = f.Sync()
	}
	return err
}

// syncFolders makes the names in folders stable.
func syncFolders(dirs ...string) error {
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// marker sends marks.
type marker struct {
	conn   net.Conn
	writer int
}

// markBit is set in the cookies of marks, and in none of the kernel's.
const markBit = 1 << 63

// newMarker connects to the export for marks.
func newMarker(t *guest.T, s *harness.Server, writer int) *marker {
	conn, err := net.Dial("unix", s.Socket)
	t.Must(err, "connect for marks")
	t.Cleanup(func() { conn.Close() })
	c, err := handshake.NewClient(t.Context(), conn)
	t.Must(err, "connect for marks")
	a, err := c.Go(t.Context(), "marks")
	t.Must(err, "connect for marks")
	return &marker{a.Conn, writer}
}

// send marks a record as stable, and returns when that is in the log.
func (m *marker) send(n int) error {
	q := proto.Request{
		Command: proto.CmdCache, Cookie: markBit | uint64(m.writer)<<32 | uint64(n),
		Offset: uint64(m.writer*fsyncRecords+n) * 512, Length: 512,
	}
	if _, err := m.conn.Write(proto.AppendRequest(nil, &q)); err != nil {
		return err
	}
	var b [proto.SimpleReplySize]byte
	var r proto.SimpleReply
	if _, err := io.ReadFull(m.conn, b[:]); err != nil {
		return err
	}
	if !proto.ParseSimpleReply(b[:], &r) || r.Cookie != q.Cookie || r.Error != proto.OK {
		return fmt.Errorf("a mark was answered by %+v", r)
	}
	return nil
}

// isMark tells marks from what the kernel sends.
func isMark(q *proto.Request) bool { return q.Cookie&markBit != 0 }

// ofMark returns what a mark stands for.
func ofMark(m replay.Mark) (writer, n int) {
	i := int(m.Request.Offset / 512)
	return i / fsyncRecords, i % fsyncRecords
}

// cutter looks at what power cuts leave.
type cutter struct {
	t      *guest.T
	h      *replay.History
	fs     guest.FS
	base   string // what was there when the log began
	image  string
	device string // a loop device of the image
}

// order wants an answer that makes something stable before each mark, and after the one
// before of the same writer.
func (c *cutter) order() {
	fua := len(c.h.Promises) - c.h.Flushes
	if want := fsyncWriters * fsyncRecords; len(c.h.Marks) != want || c.h.Flushes == 0 || fua == 0 {
		c.t.Fatalf("%s: the log has %d marks, want %d, %d flushes, and %d changes with FUA", c.fs.Type, len(c.h.Marks), want, c.h.Flushes, fua)
	}
	last := map[int]int{}
	next := 0
	for _, m := range c.h.Marks {
		writer, n := ofMark(m)
		for next < len(c.h.Promises) && c.h.Promises[next] < m.At {
			next++
		}
		if next == 0 || c.h.Promises[next-1] < last[writer] {
			c.t.Errorf("record %d of writer %d was said to be stable, and no flush or FUA was answered since the record before", n, writer)
		}
		last[writer] = m.At
	}
}

// promiseAfter returns the moment of an answer that made something stable, behind the
// first mark.
func (c *cutter) promiseAfter(rnd *rand.Rand) int {
	for {
		if at := c.h.Promises[rnd.IntN(len(c.h.Promises))]; at > c.h.Marks[0].At {
			return at
		}
	}
}

// cut cuts the power at a moment.
func (c *cutter) cut(at int, rnd *rand.Rand) {
	c.make(at, rnd)
	m := c.fs.On(c.t, c.device) // which recovers it
	marked, missing := c.missing(m.Dir, at)
	for _, text := range missing {
		c.t.Errorf("%s, after a cut at record %d of the log: %s", c.fs.Type, at, text)
	}
	m.Unmount()
	c.fs.Check(c.t, c.device)
	c.t.Logf("%s: after a cut at record %d of the log all %d stable records are there", c.fs.Type, at, marked)
}

// blind cuts the power at the first mark, and wants all later records to be missed.
func (c *cutter) blind() {
	c.make(c.h.Marks[0].At, nil)
	m := c.fs.On(c.t, c.device)
	if _, missing := c.missing(m.Dir, c.h.Marks[len(c.h.Marks)-1].At); len(missing) < fsyncWriters {
		c.t.Errorf("%s: of a disk that has hardly anything of them only %d records are missed", c.fs.Type, len(missing))
	}
	m.Unmount()
}

// make makes the image that a cut leaves.
func (c *cutter) make(at int, rnd *rand.Rand) {
	f := guest.Open(c.t, c.image, os.O_RDWR)
	defer f.Close()
	c.t.Must(f.Truncate(0), "empty the image")
	c.t.Must(f.Truncate(c.fs.Least), "empty the image")
	copyData(c.t, c.base, c.image)
	c.t.Must(c.h.Image(holed{f}, at, rnd), "image of a cut")
}

// copyData copies all that is no hole to a file of holes.
func copyData(t *guest.T, from, to string) {
	src, dst := guest.Open(t, from, os.O_RDONLY), guest.Open(t, to, os.O_WRONLY)
	defer src.Close()
	defer dst.Close()
	for end := int64(0); ; {
		off, err := unix.Seek(int(src.Fd()), end, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return
		}
		t.Must(err, "look for data")
		end, err = unix.Seek(int(src.Fd()), off, unix.SEEK_HOLE)
		t.Must(err, "look for the end of data")
		_, err = io.Copy(io.NewOffsetWriter(dst, off), io.NewSectionReader(src, off, end-off))
		t.Must(err, "copy data")
	}
}

// holed is a file with holes for zeroes.
type holed struct{ *os.File }

func (h holed) Zero(off, n int64) error {
	return unix.Fallocate(int(h.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// missing compares the records that were marked before a moment with what is below dir.
// It returns how many there are, and what is wrong with files.
func (c *cutter) missing(dir string, at int) (marked int, wrong []string) {
	want := map[string][]byte{}
	for _, m := range c.h.Marks {
		if m.At <= at {
			name, data := record(ofMark(m))
			want[name] = append(want[name], data...)
			marked++
		}
	}
	for name, data := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		switch {
		case err != nil:
			wrong = append(wrong, err.Error())
		case !bytes.HasPrefix(got, data): // more may have come to it
			wrong = append(wrong, fmt.Sprintf("%s has %d bytes, and not the %d that were made stable", name, len(got), len(data)))
		}
	}
	return marked, wrong
}
