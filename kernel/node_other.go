//go:build !linux

package kernel

// MakeNode makes the node of a device, on Linux.
func (s System) MakeNode(Index) error { return ErrUnsupported }

// SetReadOnly marks a device as read-only, on Linux.
func (s System) SetReadOnly(Index, bool) error { return ErrUnsupported }
