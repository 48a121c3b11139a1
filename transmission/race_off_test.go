//go:build !race

package transmission

const raceEnabled = false
