package file

import "unsafe"

// aligned reports whether p lies in memory as direct I/O needs it.
func aligned(p []byte, unit int64) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%uintptr(unit) == 0
}

// bounce returns an aligned buffer of n bytes.
func bounce(n int, unit int64) []byte {
	b := make([]byte, n+int(unit))
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & int(unit-1)
	return b[skip : skip+n]
}
