package trlog

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/layer/readonly"
	"nbd.example/nbd/proto"
)

func memoryDevice(t testing.TB, size int64, layers ...block.Layer) *block.Device {
	t.Helper()
	m, err := memory.New(memory.Config{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := block.Stack(m, layers...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

func contents(t testing.TB, dev *block.Device, off, n int64) []byte {
	t.Helper()
	b := make([]byte, n)
	if err := dev.ReadAt(t.Context(), b, off); err != nil {
		t.Fatal(err)
	}
	return b
}

// changes is a log of changes, of which one was refused.
func changes() []byte {
	b := appendDataLog(nil, true)
	add := func(q proto.Request, data []byte, e proto.Errno) {
		b = append(appendRequest(b, &q), data...)
		b = proto.AppendSimpleReply(b, e, q.Cookie)
	}
	add(write(1, 0, 4096), fill(1, 4096), proto.OK)
	add(proto.Request{Command: proto.CmdRead, Cookie: 2, Length: 512}, nil, proto.OK)
	add(write(3, 1024, 1024), fill(3, 1024), proto.OK)
	add(write(4, 0, 512), fill(4, 512), proto.EPERM)
	add(proto.Request{Command: proto.CmdWriteZeroes, Flags: proto.CmdFlagFUA | proto.CmdFlagNoHole, Cookie: 5, Offset: 3072, Length: 512}, nil, proto.OK)
	add(proto.Request{Command: proto.CmdFlush, Cookie: 6}, nil, proto.OK)
	add(proto.Request{Command: proto.CmdTrim, Cookie: 7, Offset: 1 << 20, Length: 4096}, nil, proto.OK)
	add(write(8, 8192, 0), nil, proto.OK)
	b = appendRequest(b, &proto.Request{Command: proto.CmdDisc})
	return b
}

func TestPlay(t *testing.T) {
	for _, flush := range []bool{false, true} {
		dev := memoryDevice(t, 2<<20)
		calls := 0
		got, err := Play(t.Context(), dev, bytes.NewReader(changes()), PlayConfig{Flush: flush, Each: func(*Record) { calls++ }})
		want := Played{Changes: 5, Blocks: 8 + 2 + 1 + 8, Bytes: 4096 + 1024 + 512 + 4096, Refused: 1}
		if flush {
			want.Flushes = 1
		}
		if got != want || err != nil || calls != 5 {
			t.Errorf("%+v, %v, %d calls; want %+v", got, err, calls, want)
		}
		image := fill(1, 4096)
		copy(image[1024:], fill(3, 1024))
		clear(image[3072:3584])
		if !bytes.Equal(contents(t, dev, 0, 4096), image) {
			t.Error("the contents are not those of the log")
		}
	}
}

// TestPlayLimit stops after so many blocks, in the middle of a change, as the
// reference's tool does.
func TestPlayLimit(t *testing.T) {
	for _, blocks := range []uint64{1, 3, 4, 5} {
		dev := memoryDevice(t, 2<<20)
		got, err := Play(t.Context(), dev, bytes.NewReader(changes()), PlayConfig{Blocks: blocks, BlockSize: 1024})
		if err != nil || got.Blocks != blocks || !got.Stopped {
			t.Errorf("%d blocks: %+v, %v", blocks, got, err)
		}
		image := make([]byte, 4096)
		copy(image, fill(1, int(min(blocks, 4)*1024)))
		if blocks == 5 {
			copy(image[1024:], fill(3, 1024))
		}
		if !bytes.Equal(contents(t, dev, 0, 4096), image) {
			t.Errorf("%d blocks: wrong contents", blocks)
		}
	}
}

func TestPlayErrors(t *testing.T) {
	noData := write(1, 0, 512)
	far := write(1, 4<<20, 512)
	huge := write(1, 0, 1<<30)
	first := changes()[:28+28+4096+16]
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, c := range map[string]struct {
		log  []byte
		dev  *block.Device
		want error
		made uint64
	}{
		"no data":        {join(first, appendDataLog(nil, false), appendRequest(nil, &noData)), nil, ErrNoData, 1},
		"lost":           {join(first, appendLost(nil, 3), first), nil, ErrIncomplete, 1},
		"garbage":        {join(first, []byte("garbage!"), first), nil, ErrIncomplete, 1},
		"truncated data": {join(first, first[:2000]), nil, ErrTruncated, 1},
		"truncated":      {join(first, first[:20]), nil, ErrTruncated, 1},
		"too long":       {join(first, appendRequest(nil, &huge), make([]byte, 1000)), nil, nil, 1},
		"out of range":   {join(first, appendRequest(nil, &far), make([]byte, 512)), nil, block.ErrRange, 2},
		"read-only":      {first, memoryDevice(t, 1<<20, readonly.Layer()), block.ErrReadOnly, 1},
	} {
		if c.dev == nil {
			c.dev = memoryDevice(t, 2<<20)
		}
		got, err := Play(t.Context(), c.dev, bytes.NewReader(c.log), PlayConfig{})
		if err == nil || c.want != nil && !errors.Is(err, c.want) || got.Changes != c.made {
			t.Errorf("%s: %+v, %v; want %v", name, got, err, c.want)
		}
		if name == "lost" || name == "garbage" {
			got, err := Play(t.Context(), c.dev, bytes.NewReader(c.log), PlayConfig{Force: true})
			if err != nil || got.Changes != 2 || got.Missing == 0 {
				t.Errorf("%s, forced: %+v, %v", name, got, err)
			}
		}
	}
}

// TestPlayAgrees plays logs with our code and with the reference's tool, the
// reference's log and one of ours.
func TestPlayAgrees(t *testing.T) {
	testgate.Requires(t, testgate.Program("nbd-trplay"))
	const size = 1 << 20
	cfg := openIn(t, "log")
	cfg.Data = true
	l := mustOpen(t, cfg)
	x := l.Tap(true)
	for i := range uint64(50) {
		n := 512 * (1 + i*37%700)
		q := write(i, 512*(i*101%600), n)
		switch {
		case i%7 == 0:
			q.Command = proto.CmdWriteZeroes
			x.Begun(q, nil, nil)
			x.Ended(i, proto.OK)
		case i%2 == 0:
			x.Begun(q, fill(byte(i), int(n)), nil)
			x.Ended(i, proto.OK)
		default:
			x.Answered(q, fill(byte(i), int(n)), proto.OK)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, log := range []string{"testdata/reference.log", cfg.Name} {
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		dev := memoryDevice(t, size)
		played, err := Play(t.Context(), dev, bytes.NewReader(text), PlayConfig{})
		if err != nil || played.Changes < 5 {
			t.Errorf("%s: %+v, %v", log, played, err)
		}
		image := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(image, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(testgate.Find("nbd-trplay"), "-i", image, "-l", log).CombinedOutput()
		if err != nil {
			t.Fatalf("nbd-trplay: %v\n%s", err, out)
		}
		theirs, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(theirs, contents(t, dev, 0, size)) {
			t.Errorf("%s: nbd-trplay makes something else of it", log)
		}
	}
}

// FuzzReader reads, dumps and plays anything.
func FuzzReader(f *testing.F) {
	// Small ones: the fuzzer spends its time on making them smaller.
	q, z := write(1, 512, 4), proto.Request{Command: proto.CmdWriteZeroes, Cookie: 2, Length: 512}
	whole := append(appendRequest(appendDataLog(nil, true), &q), "data"...)
	whole = appendRequest(proto.AppendSimpleReply(whole, proto.OK, 1), &z)
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(whole[:28+28+2])
	f.Add(appendLost([]byte("garbage"), 1))
	f.Add(proto.AppendChunk(nil, &proto.Chunk{Length: 1 << 31}))
	f.Fuzz(func(t *testing.T, log []byte) {
		r := NewReader(bytes.NewReader(log))
		last := int64(-1)
		for {
			rec, err := r.Next()
			if err != nil {
				break
			}
			if rec.At <= last || r.Offset() > int64(len(log)) {
				t.Fatalf("a record at %d behind one at %d, of %d bytes", rec.At, last, len(log))
			}
			last = rec.At
		}
		var text bytes.Buffer
		plain, object := Dump(&text, bytes.NewReader(log)), DumpJSON(&text, bytes.NewReader(log))
		if (plain == nil) != (object == nil) {
			t.Errorf("as text %v, as JSON %v", plain, object)
		}
		dev := memoryDevice(t, 1<<16)
		played, _ := Play(t.Context(), dev, bytes.NewReader(log), PlayConfig{Force: true, Blocks: 1000})
		if played.Blocks > 1000 {
			t.Errorf("%+v", played)
		}
		// A log is continued behind its last whole record. No goroutines here: they
		// would confuse the fuzzer.
		file := &fileInMemory{b: bytes.Clone(log)}
		if _, err := repair(file, &Config{Logger: slog.New(slog.DiscardHandler)}, math.MaxInt64); err == nil {
			list, err := entries(t, bytes.NewReader(proto.AppendSimpleReply(file.b, proto.OK, 77)))
			if err != nil || list[len(list)-1] != "< 77 OK" {
				t.Errorf("a log that was continued ends in %q, %v", list[len(list)-1:], err)
			}
		}
	})
}

// fileInMemory is a File that repair can read and cut.
type fileInMemory struct {
	File
	b  []byte
	at int
}

func (f *fileInMemory) Read(p []byte) (int, error) {
	if f.at == len(f.b) {
		return 0, io.EOF
	}
	n := copy(p, f.b[f.at:])
	f.at += n
	return n, nil
}

func (f *fileInMemory) Seek(off int64, _ int) (int64, error) { f.at = int(off); return off, nil }
func (f *fileInMemory) Truncate(size int64) error            { f.b = f.b[:size]; return nil }
func (f *fileInMemory) Stat() (fs.FileInfo, error)           { return f, nil }
func (f *fileInMemory) Name() string                         { return "log" }
func (f *fileInMemory) Size() int64                          { return int64(len(f.b)) }
func (f *fileInMemory) Mode() fs.FileMode                    { return 0 }
func (f *fileInMemory) ModTime() time.Time                   { return time.Time{} }
func (f *fileInMemory) IsDir() bool                          { return false }
func (f *fileInMemory) Sys() any                             { return nil }
