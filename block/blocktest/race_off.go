//go:build !race

package blocktest

const slow = 1
