package nbdioctl

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
)

func TestPlan(t *testing.T) {
	a := &kernel.Attach{Size: 10 << 30, Flags: proto.FlagHasFlags | proto.FlagSendFlush, Timeout: 1500 * time.Millisecond}
	got, err := plan(a, math.MaxUint64)
	want := []step{{setBlockSize, 512}, {setSize, 10 << 30}, {setTimeout, 2}, {setFlags, 5}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("64 bits: %v, %v; want %v", got, err, want)
	}
	got, err = plan(a, math.MaxUint32)
	want[1] = step{setSizeBlocks, 20 << 20}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("32 bits: %v, %v; want %v", got, err, want)
	}
	a.Size = 1 << 42
	if _, err := plan(a, math.MaxUint32); err == nil || !strings.Contains(err.Error(), "larger blocks") {
		t.Errorf("32 bits, 4 TiB in blocks of 512: %v", err)
	}
	a.BlockSize = 4096
	if got, err := plan(a, math.MaxUint32); err != nil || got[1] != (step{setSizeBlocks, 1 << 30}) {
		t.Errorf("32 bits, 4 TiB in blocks of 4096: %v, %v", got, err)
	}
}

// TestNumbers compares with linux/nbd.h.
func TestNumbers(t *testing.T) {
	for n, r := range []request{setSock, setBlockSize, setSize, doIt, clearSock, clearQueue, 0, setSizeBlocks, disconnect, setTimeout, setFlags} {
		if r != 0 && (r != request(0xab00+n|ioNone) || !strings.HasPrefix(r.String(), "NBD_")) {
			t.Errorf("%v is %#x, want %#x", r, uint(r), 0xab00+n)
		}
	}
}
