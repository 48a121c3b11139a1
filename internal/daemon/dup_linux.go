package daemon

import "syscall"

// dup2 is dup3 without flags: newer architectures lack the older call.
func dup2(from, to int) error { return syscall.Dup3(from, to, 0) }
