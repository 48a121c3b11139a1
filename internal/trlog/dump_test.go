package trlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/proto"
)

// sample is a log with every kind of record that the reference knows, data
// included.
func sample() []byte {
	b := appendDataLog(nil, true)
	q := write(1, 512, 600)
	q.Flags = proto.CmdFlagFUA
	b = append(appendRequest(b, &q), fill(0x25, 600)...)
	b = proto.AppendSimpleReply(b, proto.OK, 1)
	for cmd := range proto.Command(12) {
		if cmd != proto.CmdWrite {
			b = appendRequest(b, &proto.Request{Command: cmd, Flags: proto.CommandFlags(cmd) << 1, Cookie: uint64(cmd), Offset: 1 << 33, Length: 4096})
			b = proto.AppendSimpleReply(b, proto.Errno(cmd), uint64(cmd))
		}
	}
	b = appendDataLog(b, false)
	q = write(2, 0, 1<<32-1)
	return appendRequest(b, &q)
}

// TestDumpReference dumps what the reference has logged, as its own tool did.
func TestDumpReference(t *testing.T) {
	log, err := os.ReadFile("testdata/reference.log")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/reference.txt")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := Dump(&got, bytes.NewReader(log)); err != nil {
		t.Error(err)
	}
	if got.String() != strings.ReplaceAll(string(want), "\r\n", "\n") {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

// TestDumpAgrees compares with the reference's tool on all kinds of records.
func TestDumpAgrees(t *testing.T) {
	testgate.Requires(t, testgate.Program("nbd-trdump"))
	cmd := exec.Command(testgate.Find("nbd-trdump"))
	cmd.Stdin = bytes.NewReader(sample())
	want, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := Dump(&got, bytes.NewReader(sample())); err != nil {
		t.Error(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%s\nnbd-trdump says\n%s", got.String(), want)
	}
}

// TestDumpOthers dumps what only we, or only newer versions of the reference, write,
// and what is damaged.
func TestDumpOthers(t *testing.T) {
	b := appendLost(nil, 17)
	b = append(b, "garbage"...)
	b = appendSetting(b, 99, 0, fromReference, 5)
	b = proto.AppendChunk(b, &proto.Chunk{Flags: proto.ReplyFlagDone, Type: proto.ChunkOffsetData, Cookie: 5, Length: 70000})
	b = append(b, "end"...)
	var got bytes.Buffer
	err := Dump(&got, bytes.NewReader(b))
	if !errors.Is(err, ErrTruncated) {
		t.Errorf("error %v for a log that ends in the middle of a record", err)
	}
	want := `TRACE_OPTION 17 records are missing: the server could not write its log
? 7 bytes at 28 are no record
TRACE_OPTION C=0x00000063 (                UNKNOWN) O=4a93ba39a54f31b6 L=00000005
TRACE_OPTION ? unknown
<S: H=0000000000000005 T=0x0001 (NBD_REPLY_TYPE_OFFSET_DATA) F=0x0001 L=0x11170
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

func TestDumpJSON(t *testing.T) {
	b := append(appendLost(sample(), 3), "garbage"...)
	b = proto.AppendChunk(b, &proto.Chunk{Flags: proto.ReplyFlagDone, Type: proto.ChunkNone, Cookie: 5})
	b = appendSetting(b, 99, 0, fromReference, 5)
	var got bytes.Buffer
	if err := DumpJSON(&got, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	d := json.NewDecoder(&got)
	d.DisallowUnknownFields()
	for i := 0; ; i++ {
		var x described
		if err := d.Decode(&x); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(kinds) == 0 || kinds[len(kinds)-1] != x.Record {
			kinds = append(kinds, x.Record)
		}
		if i == 1 && (x.Name != "NBD_CMD_WRITE" || x.Flags != "NBD_CMD_FLAG_FUA" || *x.Offset != 512 || *x.Length != 600 || x.Cookie != "0000000000000001" || x.At != 28) {
			t.Errorf("the write is %+v", x)
		}
	}
	if text := strings.Join(kinds[len(kinds)-6:], " "); text != "datalog request lost garbage chunk unknown" {
		t.Errorf("the last kinds are %q", text)
	}
}

// TestTruncated cuts a log at every byte. What is before the cut must be read, and
// the cut be noticed, unless it is between two records.
func TestTruncated(t *testing.T) {
	whole := sample()
	borders := map[int]bool{}
	r := NewReader(bytes.NewReader(whole))
	for {
		rec, err := r.Next()
		borders[int(rec.At)] = true
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for cut := range whole {
		_, err := entries(t, bytes.NewReader(whole[:cut]))
		if borders[cut] != (err == nil) || err != nil && !errors.Is(err, ErrTruncated) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
}

// failing is a reader that fails.
type failing struct{ io.Reader }

func (f failing) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err == io.EOF {
		err = os.ErrPermission
	}
	return n, err
}

func TestReadFails(t *testing.T) {
	whole := sample()
	for _, cut := range []int{0, 2, 20, 60, 300, len(whole)} {
		if _, err := entries(t, failing{bytes.NewReader(whole[:cut])}); !errors.Is(err, os.ErrPermission) {
			t.Errorf("failing at %d: %v", cut, err)
		}
	}
}
