package process

import (
	"testing"

	"nbd.example/nbd/internal/testgate"
)

func TestProcess(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	me, err := This()
	if err != nil || !me.Running() {
		t.Errorf("%+v does not run", me)
	}
	if (Process{me.PID, me.Start + 1}).Running() || (Process{}).Running() {
		t.Error("another process runs")
	}
	for text, want := range map[string]uint64{
		"1 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21": 4711,
		"1 (a) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21":       0,
		"1 (a) S 1 2": 0,
		"":            0,
	} {
		if got := parseStat([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}
