//go:build !linux

package transmission

func (in *input) readable(uintptr) bool { panic("transmission: no plain sockets here") }
