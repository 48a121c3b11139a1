package supervise

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"nbd.example/nbd/internal/asynclog"
	"nbd.example/nbd/internal/hangups"
	"nbd.example/nbd/internal/tasks"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise/pass"
	"nbd.example/nbd/supervise/process"
)

// Supervisor keeps kernel devices attached. All methods may be called concurrently.
type Supervisor struct {
	cfg     Config
	log     *slog.Logger
	async   *asynclog.Handler
	poller  *hangups.Poller
	worker  *tasks.Queue
	unwatch context.CancelFunc
	self    Process
	times   times

	mu        sync.Mutex
	devices   map[kernel.Index]*Device
	pending   map[string]chan struct{} // identifiers that are being attached
	inherited []Socket
	former    map[kernel.Index]handed // what other processes have handed over to this one
	control   *control                // nil unless Listen was called
	closed    bool
	handed    bool
	paused    chan struct{} // closed when it is known whether all is passed on; nil if that is not about to be
	done      chan struct{}

	stored map[string]bool // the worker's: names of the sockets in the Store
}

// times bound what others may need. They are fields only for the tests.
type times struct {
	// call bounds one call of the driver: it may hang while another one does.
	call time.Duration
	// offer bounds how long the kernel may take to know that a connection is dead which
	// was shut down.
	offer time.Duration
	// ask is how long Attach waits for what a server tells on a second connection, once
	// the first is there. Servers that take only one leave the second without a word.
	ask time.Duration
	// scan bounds how long Attach waits for the partition table to be read.
	scan time.Duration
	// going is for how long Attach waits for a device that is being detached.
	going time.Duration
	// quiet bounds how long a moment without requests is waited for.
	quiet time.Duration
	// open is how long others may have a device open before it counts as in use: udev and
	// its like open it for a moment.
	open time.Duration
	// claim bounds how long a detach waits for the device to answer.
	claim time.Duration
	// write is how long a client of the control socket may take to read an answer. One that
	// does not would keep its place for ever.
	write time.Duration
	// taken is how long a process that takes all devices over may take to say that it has
	// them.
	taken time.Duration
	// polite is for how long a detach by force lets the kernel try it in good order.
	polite time.Duration
	// force is how long a detach by force waits for the device to be gone before it says
	// who holds it.
	force time.Duration
}

var defaultTimes = times{
	call: 30 * time.Second, offer: 30 * time.Second, ask: time.Second, scan: 5 * time.Second, going: 5 * time.Second,
	quiet: 10 * time.Second, open: 3 * time.Second, claim: 3 * time.Second, write: 10 * time.Second, taken: 10 * time.Second, polite: 2 * time.Second, force: 3 * time.Second,
}

// New makes a supervisor that keeps nothing yet. It listens to the kernel until Close.
func New(cfg Config) (*Supervisor, error) {
	if cfg.Kernel == nil {
		return nil, errors.New("supervise: there is no kernel driver")
	}
	if cfg.Dir == "" {
		cfg.Dir = DefaultDir
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("supervise: the directory for state files: %w", err)
	}
	self, err := process.This()
	if err != nil {
		return nil, fmt.Errorf("supervise: when this process began: %w", err)
	}
	s := &Supervisor{
		cfg: cfg, self: self, inherited: cfg.Inherited,
		devices: map[kernel.Index]*Device{}, pending: map[string]chan struct{}{}, done: make(chan struct{}),
		stored: map[string]bool{}, former: map[kernel.Index]handed{}, times: defaultTimes,
	}
	for _, f := range cfg.Inherited {
		s.stored[f.Name] = true
	}
	if s.poller, err = hangups.New(); err != nil {
		return nil, fmt.Errorf("supervise: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.unwatch = cancel
	if cfg.Kernel.Can().Watch {
		if err := cfg.Kernel.Watch(ctx, s.died); err != nil {
			cancel()
			s.poller.Close()
			return nil, fmt.Errorf("supervise: %w", err)
		}
	}
	h := slog.Handler(slog.DiscardHandler)
	if cfg.Log != nil {
		h = cfg.Log.Handler()
	}
	s.async = asynclog.New(h)
	s.log = slog.New(s.async)
	s.worker = tasks.New()
	return s, nil
}

// died tells a device that the kernel has found a connection dead.
func (s *Supervisor) died(i kernel.Index) {
	if d := s.Device(i); d != nil {
		d.died()
	}
}

// resizeInterval returns how often sizes are asked for; 0 for never.
func (s *Supervisor) resizeInterval() time.Duration {
	switch d := s.cfg.ResizeInterval; {
	case d == 0:
		return time.Minute
	case d < 0:
		return 0
	default:
		return d
	}
}

// Devices returns the devices that are kept, by their index.
func (s *Supervisor) Devices() []*Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*Device, 0, len(s.devices))
	for _, d := range s.devices {
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b *Device) int { return cmp.Compare(a.index, b.index) })
	return list
}

// Device returns the device of an index, or nil if it is not kept here.
func (s *Supervisor) Device(i kernel.Index) *Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.devices[i]
}

// Done is closed when the supervisor has nothing more to do: it was closed, or has
// handed all devices over to another process.
func (s *Supervisor) Done() <-chan struct{} { return s.done }

// keep enters a device. It waits while all devices are about to be passed on.
func (s *Supervisor) keep(ctx context.Context, d *Device) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.paused != nil {
		paused := s.paused
		s.mu.Unlock()
		select {
		case <-paused:
		case <-ctx.Done():
		}
		s.mu.Lock()
		if s.paused != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	switch {
	case s.handed:
		return ErrHandedOver
	case s.closed:
		return ErrClosed
	case s.devices[d.index] != nil:
		// The kernel says it was free, so what is kept has just been taken away.
		return fmt.Errorf("%s: %w", d.st.Device, kernel.ErrBusy)
	}
	s.devices[d.index] = d
	return nil
}

// forget strikes a device out, and removes its file if it is not for others.
func (s *Supervisor) forget(d *Device, remove bool) {
	s.mu.Lock()
	if s.devices[d.index] == d {
		delete(s.devices, d.index)
	}
	s.mu.Unlock()
	if !remove {
		return
	}
	s.worker.Do(d, func() {
		if s.Device(d.index) != nil { // another one has the index by now
			return
		}
		s.withFile(d.index, func() {
			if s.owns(d) {
				os.Remove(statePath(s.cfg.Dir, d.index))
			}
		})
		s.store(d.index, nil)
	})
}

// withFile calls f, which changes the file of an index, while other processes do not.
func (s *Supervisor) withFile(i kernel.Index, f func()) {
	ctx, cancel := context.WithTimeout(context.Background(), s.times.call)
	defer cancel()
	// Those of identifiers are below.
	unlock, err := s.lockAt(ctx, 1<<62+int64(i))
	if err != nil {
		s.log.Warn("a state file is not locked", "device", i.Path(), "err", err)
	} else {
		defer unlock()
	}
	f()
}

// owns reports whether the file of a device's index is the device's. It is not when
// another process has attached something else under that number, and not known to be as
// long as it cannot be read.
func (s *Supervisor) owns(d *Device) bool {
	st, err := readState(statePath(s.cfg.Dir, d.index))
	if errors.Is(err, errNoState) || errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		s.log.Warn("a state file cannot be read, and is left alone", "device", d.st.Device, "err", err)
		return false
	}
	return st.Identifier == d.identifier() && !s.foreign(st)
}

// record writes a device's file, and passes its sockets to the store. The worker calls
// it.
func (s *Supervisor) record(d *Device) {
	d.mu.Lock()
	st := d.status()
	over := d.err != nil
	sockets := d.sockets()
	d.mu.Unlock()
	if over {
		return
	}
	s.withFile(d.index, func() {
		switch {
		case !d.recorded:
			s.succeed(d.index)
		case !s.owns(d):
			return
		}
		d.recorded = true
		if err := writeState(s.cfg.Dir, &st); err != nil {
			s.log.Warn("the state file cannot be written: the device could not be adopted", "device", st.Device, "err", err)
		}
	})
	s.store(d.index, sockets)
}

// sockets returns the sockets that can be passed on, under the mutex. Those of relays
// are of no use to others.
func (d *Device) sockets() []Socket {
	var list []Socket
	for _, s := range d.slots {
		if s.file != nil && s.relay == nil && !s.dead {
			list = append(list, Socket{Name: pass.Name(d.index, s.told.Inode), File: s.file})
		}
	}
	return list
}

// store makes the store hold these sockets of a device. The worker calls it.
func (s *Supervisor) store(i kernel.Index, sockets []Socket) {
	if s.cfg.Store == nil {
		return
	}
	want := map[string]bool{}
	for _, f := range sockets {
		want[f.Name] = true
		if s.stored[f.Name] {
			continue
		}
		if err := s.cfg.Store.Keep(f.Name, f.File); err != nil {
			s.log.Warn("a socket cannot be stored for the next process", "device", i.Path(), "err", err)
			continue
		}
		s.stored[f.Name] = true
	}
	for name := range s.stored {
		if strings.HasPrefix(name, pass.Prefix(i)) && !want[name] {
			delete(s.stored, name)
			if err := s.cfg.Store.Drop(name); err != nil {
				s.log.Warn("a socket cannot be taken out of the store", "device", i.Path(), "err", err)
			}
		}
	}
}

// dropStored takes a socket out of the store. The worker calls it.
func (s *Supervisor) dropStored(name string) {
	delete(s.stored, name)
	if s.cfg.Store != nil {
		s.cfg.Store.Drop(name)
	}
}
