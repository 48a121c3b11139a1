package proto

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

// TestOldstyle compares with the bytes that the specification lists.
func TestOldstyle(t *testing.T) {
	g := OldstyleGreeting{Size: 0x0102030405060708, Flags: FlagHasFlags | FlagReadOnly | FlagSendFlush}
	want, err := hex.DecodeString("4e42444d41474943" + "0000420281861253" + "0102030405060708" + "00000007")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, make([]byte, 124)...)
	b := AppendOldstyle(nil, g)
	if !bytes.Equal(b, want) || len(b) != OldstyleSize {
		t.Fatalf("got %x, want %x", b, want)
	}
	if got, err := ParseOldstyle(b); err != nil || got != g {
		t.Errorf("read %+v, %v; want %+v", got, err, g)
	}
	if _, err := ParseGreeting(b); !errors.Is(err, ErrOldstyle) {
		t.Errorf("as a newstyle greeting: %v, want ErrOldstyle", err)
	}
	for name, bad := range map[string][]byte{
		"short": b[:OldstyleSize-1], "empty": nil, "newstyle": append(AppendGreeting(nil, 0), make([]byte, 200)...),
	} {
		if _, err := ParseOldstyle(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
}

func FuzzParseOldstyle(f *testing.F) {
	f.Add(AppendOldstyle(nil, OldstyleGreeting{Size: 1 << 20, Flags: FlagHasFlags}))
	f.Add(AppendOldstyle(nil, OldstyleGreeting{Size: 1<<64 - 1, Handshake: 3, Flags: 0xffff}))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := ParseOldstyle(b)
		if err != nil {
			return
		}
		if again, err := ParseOldstyle(AppendOldstyle(nil, g)); err != nil || again != g {
			t.Fatalf("%+v became %+v, %v", g, again, err)
		}
	})
}
