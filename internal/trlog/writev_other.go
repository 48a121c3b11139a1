//go:build !linux

package trlog

// writeAll writes one after the other, and returns how many bytes it has written.
func writeAll(f File, list [][]byte) (done int64, err error) { return writeEach(f, list) }
