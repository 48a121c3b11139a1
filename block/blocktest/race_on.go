//go:build race

package blocktest

// slow divides the number of steps: the race detector makes each ten times dearer.
const slow = 4
