package file

import (
	"encoding/hex"
	"testing"
	"unsafe"
)

// ioctlNumber is _IOR, _IOW or _IOWR of BSD's sys/ioccom.h.
func ioctlNumber(direction uint32, number uint32, size uintptr) uint32 {
	return direction | uint32(size)<<16 | 'd'<<8 | number
}

// TestTrimRequests: the sizes of structures are part of the numbers of requests, so that a
// wrong one is refused by the system, and not seen by anybody before.
func TestTrimRequests(t *testing.T) {
	const out, in = 0x40000000, 0x80000000
	is64 := unsafe.Sizeof(uintptr(0)) == 8
	for _, x := range []struct {
		name      string
		got, want uint32
	}{
		{"DKIOCUNMAP", ioctlNumber(in, 31, unsafe.Sizeof(unmapRequest{})), 0x8010641f},
		{"DKIOCGETFEATURES", ioctlNumber(out, 76, unsafe.Sizeof(uint32(0))), 0x4004644c},
		{"DIOCGATTR", ioctlNumber(in|out, 142, unsafe.Sizeof(diskAttribute{})), 0xc148648e},
	} {
		if is64 && x.got != x.want {
			t.Errorf("%s is %#x, want %#x", x.name, x.got, x.want)
		}
	}
	if at := unsafe.Offsetof(diskAttribute{}.value); is64 && at != 72 {
		t.Errorf("the value of an attribute begins at %d, want 72", at)
	}

	const want = "1c000000" + "01000000" + "00000080" + "00000000" + "00000000" + "20000000" + "10000000" + "00000000" +
		"0010000000000000" + "0000000001000000"
	b := dataSetRequest(0x1000, 1<<32)
	if got := hex.EncodeToString(b[:]); got != want {
		t.Errorf("the request to Windows is\n%s, want\n%s", got, want)
	}
	if trimEnabled(nil) || trimEnabled(make([]byte, 12)) || !trimEnabled([]byte{12, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0}) {
		t.Error("the answer of Windows is misread")
	}
}
