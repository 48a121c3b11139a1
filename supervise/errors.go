package supervise

import (
	"errors"
	"fmt"
	"strings"

	"nbd.example/nbd/kernel"
)

// AttachedError says that another process keeps a device with the identifier, or that it is
// attached and [Unkept].
type AttachedError struct {
	State State
}

// Error says which device and which process.
func (e *AttachedError) Error() string {
	if e.State.Phase == Unkept {
		return fmt.Sprintf("%q is attached as %s already, and no process keeps it: detach it first, or attach it a second time with another identifier", e.State.Identifier, e.State.Device)
	}
	return fmt.Sprintf("%q is attached as %s already, kept by process %d", e.State.Identifier, e.State.Device, e.State.Process.PID)
}

// BusyError says that a device is in use, by whom.
type BusyError struct {
	Info   kernel.Info
	Forced bool // it is detached nevertheless, and will be gone when they let go of it
}

// Error says what uses the device.
func (e *BusyError) Error() string {
	text := e.Info.Index.Path() + " is in use: " + e.users()
	if e.Forced {
		return text + "; it is detached, and will be gone when they let go of it"
	}
	return text
}

// users lists them.
func (e *BusyError) users() string {
	var list []string
	if users := e.Info.Users(); users != "" {
		list = append(list, users)
	}
	if n := e.Info.Reads + e.Info.Writes; n > 0 {
		list = append(list, fmt.Sprintf("%d requests are under way", n))
	}
	if list == nil {
		return "the kernel does not say by whom; it may be mounted in another mount namespace"
	}
	return strings.Join(list, ", ")
}

// Unwrap returns [kernel.ErrBusy].
func (e *BusyError) Unwrap() error { return kernel.ErrBusy }

// Errors of Device.Err and of methods that come too late.
var (
	ErrClosed     = errors.New("the supervisor is closed")
	ErrHandedOver = errors.New("another process keeps the device now")
	ErrDetached   = errors.New("the device is detached")
	// ErrLost: it was attached by ioctl, and is gone since all its connections died, or
	// somebody detached it.
	ErrLost = errors.New("the device is gone: its connections died, or somebody detached it, and what is attached by ioctl cannot be connected again: attach it anew, by netlink if possible")
	// ErrTakenAway: somebody else has detached it.
	ErrTakenAway = errors.New("the device was detached by another process")
)
