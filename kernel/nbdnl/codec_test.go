package nbdnl

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
)

// little skips tests with recorded bytes on machines that write numbers the other way.
func little(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("netlink has the byte order of the machine, and the bytes here are those of a little one")
	}
}

// TestConnectBytes compares with the bytes that the kernel's definitions demand.
func TestConnectBytes(t *testing.T) {
	little(t)
	a := &kernel.Attach{
		Index: 3, Size: 1 << 32, BlockSize: 4096, Flags: proto.FlagHasFlags | proto.FlagCanMultiConn,
		Timeout: 1500 * time.Millisecond, DeadTimeout: time.Minute,
		Client: kernel.DestroyOnDisconnect | kernel.DisconnectOnClose, Identifier: "abc",
	}
	got, err := encodeConnect(a, []uint32{5, 258})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer(" ", "", "\n", "", "\t", "").Replace(`
		0800 0100 03000000
		0c00 0200 0000000001000000
		0c00 0300 0010000000000000
		0c00 0400 0200000000000000
		0c00 0800 3c00000000000000
		0c00 0500 0101000000000000
		0c00 0600 0300000000000000
		0800 0a00 61626300
		1c00 0780
			0c00 0180 0800 0100 05000000
			0c00 0180 0800 0100 02010000`)
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
}

// TestDefaults wants everything sent that the kernel would else take from somewhere.
func TestDefaults(t *testing.T) {
	b, err := encodeConnect(&kernel.Attach{Any: true, Size: 512}, []uint32{1})
	if err != nil {
		t.Fatal(err)
	}
	got := numbers(t, b)
	for attr, want := range map[uint16]uint64{
		attrSizeBytes: 512, attrBlockSizeBytes: 512, attrTimeout: 0, attrDeadConnTimeout: 0, attrServerFlags: 0, attrClientFlags: 0,
	} {
		if n, ok := got[attr]; !ok || n != want {
			t.Errorf("attribute %d is %d (%t), want %d", attr, n, ok, want)
		}
	}
	if _, ok := got[attrIndex]; ok {
		t.Error("an index was sent, though any will do")
	}
}

// numbers returns the attributes that are u64, and the index.
func numbers(t *testing.T, b []byte) map[uint16]uint64 {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		t.Fatal(err)
	}
	list := map[uint16]uint64{}
	for d.Next() {
		switch {
		case d.Type() == attrIndex:
			list[attrIndex] = uint64(d.Uint32())
		case len(d.Bytes()) == 8:
			list[d.Type()] = d.Uint64()
		}
	}
	if err := d.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestReconfigure wants only that sent which is to change.
func TestReconfigure(t *testing.T) {
	b, err := encodeReconfigure(7, &kernel.Change{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	index, err := encodeIndex(7)
	if err != nil || !bytes.Equal(b, index) {
		t.Errorf("a change of nothing is %x, want %x", b, index)
	}
	zero, long, client := time.Duration(0), time.Duration(math.MaxInt64), kernel.ClientFlags(0)
	b, err = encodeReconfigure(7, &kernel.Change{Size: 1024, BlockSize: 512, Timeout: &zero, DeadTimeout: &long, Client: &client}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := numbers(t, b)
	want := map[uint16]uint64{
		attrIndex: 7, attrSizeBytes: 1024, attrBlockSizeBytes: 512, attrTimeout: 0, attrClientFlags: 0,
		attrDeadConnTimeout: min(9223372037, math.MaxInt/1000),
	}
	for attr, n := range want {
		if got[attr] != n {
			t.Errorf("attribute %d is %d, want %d", attr, got[attr], n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestStatus(t *testing.T) {
	little(t)
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "", "\t", "").Replace(`
		2c00 0900
			1400 0100 0800 0100 00000000 0500 0200 01000000
			1400 0100 0800 0100 ff0f0000 0500 0200 00000000
		0800 6300 00000000`))
	if err != nil {
		t.Fatal(err)
	}
	list, err := decodeStatus(b)
	if want := []kernel.Status{{Index: 0, Connected: true}, {Index: 4095}}; err != nil || !slices.Equal(list, want) {
		t.Errorf("got %+v, %v; want %+v", list, err, want)
	}
	if list, err := decodeStatus(nil); err != nil || len(list) != 0 {
		t.Errorf("nothing is %+v, %v", list, err)
	}
	for n := 1; n < 44; n++ {
		if list, err := decodeStatus(b[:n]); err == nil {
			t.Errorf("%d bytes are %+v", n, list)
		}
	}
}

func TestIndex(t *testing.T) {
	b, err := encodeIndex(77)
	if err != nil {
		t.Fatal(err)
	}
	if i, err := decodeIndex(b); err != nil || i != 77 {
		t.Errorf("got %d, %v", i, err)
	}
	if _, err := decodeIndex(nil); err != errNoIndex {
		t.Errorf("without an index: %v", err)
	}
	if _, err := decodeIndex(b[:len(b)-1]); err == nil {
		t.Error("half an index is one")
	}
}

func FuzzStatus(f *testing.F) {
	for _, s := range []string{
		"2c0009001400010008000100000000000500020001000000140001000800010001000000050002000000000000",
		"18000900140001000800010000000000050002000100000000", "0400090004000900", "0800090004000100",
	} {
		b, _ := hex.DecodeString(s)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeStatus(b)
		if err == nil && len(list) > len(b)/8 {
			t.Errorf("%d devices in %d bytes", len(list), len(b))
		}
	})
}

func FuzzIndex(f *testing.F) {
	b, _ := encodeIndex(3)
	f.Add(b)
	f.Add([]byte{4, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := decodeIndex(b)
		if err != nil {
			return
		}
		b, err = encodeIndex(i)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decodeIndex(b); err != nil || again != i {
			t.Errorf("%d became %d, %v", i, again, err)
		}
	})
}
