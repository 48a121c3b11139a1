package file

import (
	"os"
	"path/filepath"
	"testing"
)

// TestAhead: reads that follow one another are read ahead of, a stretch at a time, as long
// as they do; what is in memory anyhow is left alone.
func TestAhead(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const n = 256 << 10
	var s stream
	for i, step := range []struct {
		off      int64
		resident bool
		ahead    int64
	}{
		{0, true, 0}, // a file in memory costs nothing
		{4 * n, false, 0},
		{5 * n, false, 6*n + aheadWindow},
		{6 * n, true, 6*n + aheadWindow}, // enough is on its way
		{7 * n, false, 6*n + aheadWindow},
		{8 * n, true, 6*n + aheadWindow},
		{9 * n, true, 6*n + aheadWindow},
		{10 * n, true, 6*n + aheadWindow},
		{11 * n, true, 6*n + aheadWindow},
		{12 * n, true, 6*n + aheadWindow},
		{13 * n, true, 14*n + aheadWindow},
		{99 * n, true, 0},  // another place
		{100 * n, true, 0}, // and all of it is there
		{101 * n, false, 0},
		{102 * n, false, 103*n + aheadWindow},
	} {
		s.follow(f.Fd(), step.off, n, step.resident)
		if got := s.ahead.Load(); got != step.ahead {
			t.Fatalf("step %d: ahead up to %d blocks, want %d", i, got/n, step.ahead/n)
		}
	}
}
