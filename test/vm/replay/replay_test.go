package replay

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"nbd.example/nbd/internal/trlog"
	"nbd.example/nbd/proto"
)

// memory is a Disk.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
func (m memory) Zero(off, n int64) error                  { clear(m[off:][:n]); return nil }

// scribe writes a log by telling a Tap.
type scribe struct {
	t    *testing.T
	log  *trlog.Log
	tap  *trlog.Tap
	path string
}

func newScribe(t *testing.T, data bool) *scribe {
	s := &scribe{t: t, path: filepath.Join(t.TempDir(), "log")}
	var err error
	s.log, err = trlog.Open(trlog.Config{Data: data, Open: func() (trlog.File, error) {
		return os.OpenFile(s.path, trlog.OpenFlags, trlog.OpenMode)
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.tap = s.log.Tap(data)
	return s
}

// begin tells of a request, and end of its answer.
func (s *scribe) begin(c proto.Command, cookie uint64, block, blocks int, flags proto.CommandFlags) {
	q := proto.Request{Command: c, Cookie: cookie, Offset: uint64(block) * Block, Length: uint64(blocks) * Block, Flags: flags}
	var data []byte
	if c == proto.CmdWrite && s.tap.Payloads() {
		data = bytes.Repeat([]byte{byte(cookie)}, blocks*Block)
	}
	s.tap.Begun(q, data, nil)
}

func (s *scribe) end(cookie uint64, e proto.Errno) { s.tap.Ended(cookie, e) }

func (s *scribe) write(cookie uint64, block, blocks int, flags proto.CommandFlags) {
	s.begin(proto.CmdWrite, cookie, block, blocks, flags)
	s.end(cookie, proto.OK)
}

// read closes the log and reads it.
func (s *scribe) read() (*History, error) {
	if err := s.log.Close(); err != nil {
		s.t.Fatal(err)
	}
	text, err := os.ReadFile(s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	return Read(bytes.NewReader(text), int64(len(text)), func(q *proto.Request) bool { return q.Command == proto.CmdCache })
}

func (s *scribe) mustRead() *History {
	h, err := s.read()
	if err != nil {
		s.t.Fatal(err)
	}
	return h
}

// images returns what four blocks may hold after cuts behind a record: for each image the
// first byte of each block.
func images(t *testing.T, h *History, at int) (list []string) {
	for seed := range uint64(200) {
		m := make(memory, 4*Block)
		if err := h.Image(m, at, rand.New(rand.NewPCG(seed, 0))); err != nil {
			t.Fatal(err)
		}
		var s []byte
		for b := range 4 {
			if p := m[b*Block:][:Block]; bytes.Count(p, p[:1]) != Block {
				t.Fatalf("block %d is torn", b)
			}
			s = append(s, '0'+m[b*Block])
		}
		list = append(list, string(s))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func wantImages(t *testing.T, h *History, at int, want ...string) {
	t.Helper()
	if got := images(t, h, at); !slices.Equal(got, want) {
		t.Errorf("after a cut at %d: %q, want %q", at, got, want)
	}
}

// TestImages cuts behind every record that changes what is promised.
func TestImages(t *testing.T) {
	s := newScribe(t, true) // the log begins with a setting, record 0
	s.write(1, 0, 2, 0)     // 1, 2
	s.begin(proto.CmdFlush, 2, 0, 0, 0)
	s.write(3, 2, 1, 0)                  // 4, 5: answered while the flush is under way
	s.end(2, proto.OK)                   // 6
	s.write(4, 3, 1, proto.CmdFlagFUA)   // 7, 8
	s.begin(proto.CmdTrim, 5, 0, 1, 0)   // 9
	s.begin(proto.CmdCache, 5, 99, 0, 0) // 10
	s.end(5, proto.OK)                   // 11, of the mark
	s.end(5, proto.OK)                   // 12, of the trim
	s.begin(proto.CmdWrite, 6, 1, 1, 0)  // 13
	s.end(6, proto.EIO)                  // 14
	s.begin(proto.CmdFlush, 7, 0, 0, 0)  // 15
	s.end(7, proto.OK)                   // 16
	h := s.mustRead()
	wantImages(t, h, 0, "0000")
	wantImages(t, h, 1, "0000", "0100", "1000", "1100")
	wantImages(t, h, 3, "0000", "0100", "1000", "1100")
	wantImages(t, h, 5, "0000", "0030", "0100", "0130", "1000", "1030", "1100", "1130")
	wantImages(t, h, 6, "1100", "1130")
	wantImages(t, h, 8, "1104", "1134")
	wantImages(t, h, 12, "0104", "0134", "1104", "1134")
	wantImages(t, h, 16, "0134", "0634")
	if want := []int{6, 8, 16}; !slices.Equal(h.Promises, want) || h.Flushes != 2 {
		t.Errorf("promises at %d, want %d; %d flushes", h.Promises, want, h.Flushes)
	}
	if len(h.Marks) != 1 || h.Marks[0].At != 10 || h.Marks[0].Request.Offset != 99*Block {
		t.Errorf("marks: %+v", h.Marks)
	}
	m := make(memory, 4*Block)
	if err := h.Image(m, 8, nil); err != nil || m[0] != 1 || m[2*Block] != 0 || m[3*Block] != 4 {
		t.Errorf("of what was not promised something is there: %v", err)
	}
}

// TestOlder: what was not promised does not take the place of what came later.
func TestOlder(t *testing.T) {
	s := newScribe(t, true)
	s.write(1, 0, 1, 0)
	s.write(2, 0, 1, proto.CmdFlagFUA)
	wantImages(t, s.mustRead(), 4, "2000")
}

// TestUseless refuses logs that do not tell what is needed.
func TestUseless(t *testing.T) {
	s := newScribe(t, false)
	s.write(1, 0, 1, 0)
	if _, err := s.read(); !errors.Is(err, trlog.ErrNoData) {
		t.Errorf("a log without data: %v", err)
	}
	s = newScribe(t, true)
	s.begin(proto.CmdFlush, 1, 0, 0, 0)
	s.end(1, proto.EIO)
	if _, err := s.read(); err == nil {
		t.Error("a log with a flush that failed was read")
	}
	s = newScribe(t, true)
	s.begin(proto.CmdWrite, 1, 0, 1, 0)
	s.begin(proto.CmdWrite, 1, 0, 1, 0)
	if _, err := s.read(); err == nil {
		t.Error("a log with two requests of one cookie was read")
	}
	if _, err := Read(bytes.NewReader([]byte("nonsense")), 8, nil); !errors.Is(err, trlog.ErrIncomplete) {
		t.Errorf("no log: %v", err)
	}
}
