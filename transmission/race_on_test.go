//go:build race

package transmission

// raceEnabled says that the race detector is on, under which pools forget on purpose.
const raceEnabled = true
