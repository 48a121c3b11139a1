package kerneltest

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/internal/announce"
)

// Config of a fake kernel.
type Config struct {
	// Second is how long a second of the kernel lasts, so that tests of timeouts need
	// not wait. 0 means a second.
	Second time.Duration
	// Devices is how many there are from the start, as by the module's nbds_max.
	// 0 means 16; negative means none. Connecting makes more.
	Devices int
	// PID is that of the process that attaches, as Info says it. 0 means that of the test.
	PID int
	// MaxRequest is the most that one request asks for, in bytes, until LimitRequests
	// changes it; more is split. 0 means 1,280 KiB, as kernel 6.12 has it; the driver's own limit is
	// MaxRequest.
	MaxRequest int
	// Log gets what the driver would say in the kernel's log. Nil discards it.
	Log *slog.Logger
}

// MaxRequest is the most that nbd.ko ever asks for in one request, in bytes.
const MaxRequest = 32 << 20

// Op is a call of the driver, for [Kernel.Intercept].
type Op string

// The calls.
const (
	OpConnect       Op = "connect"
	OpReconfigure   Op = "reconfigure"
	OpDisconnect    Op = "disconnect"
	OpStatus        Op = "status"
	OpClaim         Op = "claim"
	OpLimitRequests Op = "limit-requests"
)

// Kernel is a fake kernel. Make one with [New], talk to it as a program does through
// [Kernel.Open], and use its devices as file systems do through [Kernel.Device]. All
// methods may be called concurrently.
type Kernel struct {
	cfg Config
	log *slog.Logger
	wg  sync.WaitGroup // calls, receivers
	// board is where deaths are announced.
	board  announce.Board
	deaths atomic.Int64 // LINK_DEAD messages sent

	mu        sync.Mutex
	devices   map[kernel.Index]*Device
	intercept func(ctx context.Context, op Op, i kernel.Index) error
	closed    bool
}

// errClosed is what calls of a kernel that was closed return.
var errClosed = errors.New("the fake kernel was closed")

// New returns a kernel in which the driver is loaded. It must be closed.
func New(cfg Config) *Kernel {
	cfg.Second = cmp.Or(cfg.Second, time.Second)
	cfg.PID = cmp.Or(cfg.PID, os.Getpid())
	cfg.MaxRequest = min(cmp.Or(cfg.MaxRequest, 1280<<10), MaxRequest)
	k := &Kernel{
		cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		devices: map[kernel.Index]*Device{},
	}
	for i := range cmp.Or(cfg.Devices, 16) {
		k.devices[kernel.Index(i)] = newDevice(k, kernel.Index(i))
	}
	return k
}

// Open returns a way to the driver as nbdnl.Open does. Several may be open, as several
// processes have them; devices do not depend on any.
func (k *Kernel) Open() *Driver { return newDriver(k) }

// Device returns a kernel device, or nil if there is none of that index.
func (k *Kernel) Device(i kernel.Index) *Device {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.devices[i]
}

// all returns all devices.
func (k *Kernel) all() []*Device {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []*Device
	for d := range maps.Values(k.devices) {
		list = append(list, d)
	}
	return list
}

// Intercept has f called at the begin of each call of the driver; the index is 0 for a
// Connect that lets the driver choose. An error is the call's result, and nothing is
// done; f may also wait, which makes a kernel that hangs (the call returns with the
// error of its ctx then, like those of the drivers, whatever f does). Nil ends it.
func (k *Kernel) Intercept(f func(ctx context.Context, op Op, i kernel.Index) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.intercept = f
}

// LinkDeaths returns how many LINK_DEAD messages were sent, to watchers or to nobody.
func (k *Kernel) LinkDeaths() int {
	return int(k.deaths.Load())
}

// Close ends the kernel: all connections are shut down, all requests fail, and all that
// it has started has ended when it returns. Drivers return errors from then on. It must
// not be called while an Intercept waits for something that comes after it.
func (k *Kernel) Close() error {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	for _, d := range k.all() {
		d.halt()
	}
	k.wg.Wait()
	k.board.Close()
	return nil
}

// seconds returns how long it takes the kernel to count d, which it does in whole
// seconds.
func (k *Kernel) seconds(d time.Duration) time.Duration {
	n := kernel.Seconds(d)
	if limit := uint64(1<<62) / uint64(k.cfg.Second); n > limit {
		n = limit
	}
	return time.Duration(n) * k.cfg.Second
}

// start counts a goroutine that Close waits for, unless the kernel is closed.
func (k *Kernel) start(f func()) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return false
	}
	k.wg.Go(f)
	return true
}

// linkDead tells all watchers that a connection of the device has died.
func (k *Kernel) linkDead(i kernel.Index) {
	k.deaths.Add(1)
	k.board.Post(i)
}

// find returns a device by its index.
func (k *Kernel) find(i kernel.Index) (*Device, error) {
	if d := k.Device(i); d != nil {
		return d, nil
	}
	return nil, kernel.ErrNoDevice
}

// choose returns the device that CONNECT is for, and makes it if it has to.
func (k *Kernel) choose(a *kernel.Attach) *Device {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := a.Index
	if a.Any {
		for i = 0; ; i++ { // nbd_find_get_unused, or the first number that is free
			if d := k.devices[i]; d == nil || !d.inUse() {
				break
			}
		}
	}
	if k.devices[i] == nil {
		k.devices[i] = newDevice(k, i)
	}
	return k.devices[i]
}

// remove removes a device that is to be destroyed when it is detached.
func (k *Kernel) remove(d *Device) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.devices[d.index] == d {
		delete(k.devices, d.index)
	}
}
