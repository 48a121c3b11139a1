package file

import (
	"fmt"
	"strings"
	"testing"

	"nbd.example/nbd/block"
)

// describe writes extents as letters, one for each 4096 bytes: d for data, h for
// a hole.
func describe(t *testing.T, list []allocatedRange, off, end, unit int64, one bool) string {
	t.Helper()
	var b strings.Builder
	addExtents(list, off, end, unit, one, func(x block.Extent) bool {
		letter := "d"
		if x.State != 0 {
			letter = "h"
		}
		if x.Length%4096 != 0 || x.Length <= 0 {
			t.Errorf("an extent of %d bytes", x.Length)
		}
		b.WriteString(strings.Repeat(letter, int(x.Length/4096)) + " ")
		return true
	})
	return strings.TrimSpace(b.String())
}

func TestAddExtents(t *testing.T) {
	const k = 4096
	for _, x := range []struct {
		list     []allocatedRange
		off, end int64
		unit     int64
		one      bool
		want     string
	}{
		{nil, 0, 4 * k, 1, false, "hhhh"},
		{[]allocatedRange{{0, 8 * k}}, 0, 4 * k, 1, false, "dddd"},
		{[]allocatedRange{{0, 8 * k}}, 2 * k, 4 * k, 1, false, "dd"},
		{[]allocatedRange{{k, k}}, 0, 4 * k, 1, false, "h d hh"},
		{[]allocatedRange{{k, k}}, 0, 4 * k, 1, true, "h"},
		{[]allocatedRange{{0, k}, {k, k}, {3 * k, k}}, 0, 4 * k, 1, false, "dd h d"},
		{[]allocatedRange{{0, 3 * k}, {k, k}}, 0, 4 * k, 1, false, "ddd h"},
		{[]allocatedRange{{0, 1}, {3*k + 5, 1}}, 0, 4 * k, k, false, "d hh d"},
		{[]allocatedRange{{0, k}, {2 * k, k}}, k, 2 * k, 1, false, "h"},
	} {
		if got := describe(t, x.list, x.off, x.end, x.unit, x.one); got != x.want {
			t.Errorf("%v from %d to %d: %q, want %q", x.list, x.off, x.end, got, x.want)
		}
	}
}

func TestWithRange(t *testing.T) {
	list := []allocatedRange{{0, 1}, {10, 1}}
	for _, x := range []struct {
		off, end int64
		want     string
	}{
		{5, 5, "[{0 1} {10 1}]"},
		{5, 7, "[{0 1} {5 2} {10 1}]"},
		{20, 30, "[{0 1} {10 1} {20 10}]"},
		{0, 30, "[{0 1} {0 30} {10 1}]"},
	} {
		if got := fmt.Sprint(withRange(list, x.off, x.end)); got != x.want {
			t.Errorf("with %d to %d: %s, want %s", x.off, x.end, got, x.want)
		}
	}
	if fmt.Sprint(list) != "[{0 1} {10 1}]" {
		t.Errorf("the list was changed: %v", list)
	}
}

// TestSpan has writes before, during and after a flush.
func TestSpan(t *testing.T) {
	var s span
	check := func(when string, off, end int64) {
		t.Helper()
		if a, b := s.now(); a != off || b != end {
			t.Errorf("%s: from %d to %d, want %d to %d", when, a, b, off, end)
		}
	}
	check("at first", 0, 0)
	s.add(100, 200)
	check("after a write", 100, 200)
	s.add(50, 60)
	check("after another", 50, 200)
	flushed := s.flushing()
	check("during a flush", 50, 200)
	flushed()
	check("after it", 0, 0)
	s.add(7, 8)
	flushed = s.flushing()
	s.add(9, 10)
	flushed()
	check("after a flush that a write overtook", 7, 10)
}

func TestIsDiskName(t *testing.T) {
	for name, want := range map[string]bool{
		`\\.\PhysicalDrive0`: true, `//./PhysicalDrive0`: true, `\\.\C:`: true,
		`\\?\Volume{8a1f0d7c-0000-0000-0000-100000000000}`:  true,
		`\\?\Volume{8a1f0d7c-0000-0000-0000-100000000000}\`: false,
		`\\?\C:`: false, `\\.\C:\x`: false, `\\?\C:\disk.img`: false, `C:\disk.img`: false, `\\server\share`: false, `\\.\`: false, "": false,
	} {
		if got := isDiskName(name); got != want {
			t.Errorf("%q: %t", name, got)
		}
	}
	for name, want := range map[string]bool{
		`\\.\PhysicalDrive0`: true, `//./physicaldrive12`: true, `\\.\PhysicalDrive`: false, `\\.\C:`: false,
	} {
		if got := isPhysical(name); got != want {
			t.Errorf("%q is a whole disk: %t", name, got)
		}
	}
}

func TestSerialOf(t *testing.T) {
	b := make([]byte, 40)
	copy(b[30:], "  WD-12 \x00x")
	for at, want := range map[byte]string{0: "", 30: "WD-12", 38: "", 39: "x", 40: "", 255: ""} {
		b[24] = at
		if got := serialOf(b); got != want {
			t.Errorf("at %d: %q, want %q", at, got, want)
		}
	}
	if got := serialOf(b[:27]); got != "" {
		t.Errorf("of too short a text: %q", got)
	}
}
