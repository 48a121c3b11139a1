package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise/pass"
	"nbd.example/nbd/supervise/process"
	"nbd.example/nbd/supervise/sock"
)

// Adopt takes over the devices whose state files say that their supervisor is gone, or
// has released them: all of them, or those of indices. Those that cannot be taken over are
// left alone, and the error says why, see [Unadopted]; the others are returned along with it.
//
// Of a device whose supervisor crashed nobody has the sockets but the kernel: they work,
// but their death shows only in what the kernel tells. So a new connection is offered to
// the kernel at once, in case one died unseen, and the kernel takes it only then.
// Sockets among Config.Inherited are kept as if nothing had happened; those of devices that
// could not be taken over wait for the next time.
func (s *Supervisor) Adopt(ctx context.Context, indices ...kernel.Index) ([]*Device, error) {
	list, err := States(s.cfg.Dir)
	failed := []error{err}
	var all []*Device
	for i := range list {
		st := &list[i]
		if s.Device(st.Index) != nil || s.foreign(st) || len(indices) > 0 && !slices.Contains(indices, st.Index) {
			continue
		}
		d, err := s.adoptLocked(ctx, st)
		if err != nil {
			failed = append(failed, &StateError{st.Index, err})
		} else if d != nil {
			all = append(all, d)
		}
	}
	err = errors.Join(failed...)
	later := Unadopted(err)
	s.dropInherited(func(i kernel.Index) bool {
		return !slices.Contains(later, i) && (len(indices) == 0 || slices.Contains(indices, i))
	})
	return all, err
}

// StateError says why a device cannot be taken over, or what is wrong with its state file.
type StateError struct {
	Index kernel.Index
	Err   error
}

func (e *StateError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *StateError) Unwrap() error { return e.Err }

// Unadopted returns the devices that an error of [Supervisor.Adopt] or [States] is about.
func Unadopted(err error) (list []kernel.Index) {
	if e, ok := err.(*StateError); ok {
		return []kernel.Index{e.Index}
	}
	if e, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range e.Unwrap() {
			list = append(list, Unadopted(err)...)
		}
	}
	return list
}

// adoptLocked adopts a device unless another process is doing that.
func (s *Supervisor) adoptLocked(ctx context.Context, st *State) (*Device, error) {
	d, end, err := s.begin(ctx, st.Identifier)
	if d != nil || err != nil {
		return nil, err
	}
	defer end()
	// Another process may have been faster.
	st, err = readState(statePath(s.cfg.Dir, st.Index))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	if s.foreign(st) {
		return nil, nil
	}
	if s.stale(st) {
		s.removeStale(st)
		return nil, nil
	}
	return s.adopt(ctx, st)
}

// foreign reports whether the process that a state file names keeps what the file describes,
// and is another one.
func (s *Supervisor) foreign(st *State) bool {
	s.mu.Lock()
	h := s.former[st.Index]
	s.mu.Unlock()
	handed := h.Identifier == st.Identifier && slices.Contains(h.Processes, st.Process)
	return st.Process != s.self && !handed && st.Process.Running()
}

// removeStale removes a stale file, unless another process has written a new one meanwhile.
func (s *Supervisor) removeStale(st *State) {
	s.withFile(st.Index, func() {
		path := statePath(s.cfg.Dir, st.Index)
		if now, err := readState(path); err == nil && now.Identifier == st.Identifier && now.Process == st.Process {
			os.Remove(path)
		}
	})
	s.removeSocket(st.Process)
}

// succeed removes what the process has left that had a file for a device of this index before,
// if it was killed.
func (s *Supervisor) succeed(i kernel.Index) {
	if old, err := readState(statePath(s.cfg.Dir, i)); err == nil && old.Process != s.self {
		s.removeSocket(old.Process)
	}
}

// removeSocket removes what a process that was killed has left of its control socket, unless
// another one has its number by now.
func (s *Supervisor) removeSocket(of Process) {
	if now, err := process.Of(of.PID); err == nil && now.Start == 0 {
		os.Remove(ControlPath(s.cfg.Dir, of.PID))
	}
}

// stale reports whether the device of a state file is no longer attached.
func (s *Supervisor) stale(st *State) bool {
	info, err := s.cfg.Kernel.Info(st.Index)
	switch {
	case err != nil:
		return errors.Is(err, kernel.ErrNoDevice)
	case info.PID == 0 && info.Size == 0:
		return true
	case st.Shown || info.Identifier != "":
		return st.Replaced(info)
	}
	return info.Size/st.BlockSize != st.Size/st.BlockSize // the kernel tells no identifiers
}

// adopt takes over a device.
func (s *Supervisor) adopt(ctx context.Context, old *State) (*Device, error) {
	if can := s.cfg.Kernel.Can(); !can.Adopt || !can.Reconfigure {
		return nil, fmt.Errorf("adopt %s: devices that are attached by ioctl live and die with the process that attached them: detach it, and attach it again", old.Device)
	}
	spec, err := old.Spec.complete()
	if err != nil {
		return nil, fmt.Errorf("adopt %s: %w", old.Device, err)
	}
	targets, local, err := s.targets(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("adopt %s: %w", old.Device, err)
	}
	st := *old
	st.Spec, st.Process, st.Control, st.Connections = *spec, s.self, s.controlPath(), nil
	d := s.newDevice(st, targets, local)
	<-d.detaching // nobody gets it before it has its keeper
	defer d.detaching.Give()
	if err := s.keep(ctx, d); err != nil {
		d.end(err, Released, false)
		return nil, fmt.Errorf("adopt %s: %w", old.Device, err)
	}
	var slots []*slot
	for _, c := range old.Connections {
		slots = append(slots, d.inherit(c))
	}
	d.mu.Lock()
	d.slots = slots
	d.mu.Unlock()
	phase := phaseOf(slots)
	d.update(func(st *State) { st.Phase, st.Reason = phase, "" })
	s.worker.Flush(ctx)
	d.start(true)
	d.log.Info("adopted", "identifier", st.Identifier, "connections", len(old.Connections), "sockets", len(d.Status().held()))
	return d, nil
}

// held returns the connections whose sockets the supervisor has.
func (st State) held() (list []Connection) {
	for _, c := range st.Connections {
		if c.Held {
			list = append(list, c)
		}
	}
	return list
}

// inherit makes the slot of a connection that an earlier process made. One that went through
// that process, or to it, has ended with it.
func (d *Device) inherit(c Connection) *slot {
	s := &slot{told: c, unwatch: func() {}, dead: c.Relay || d.local != nil}
	s.told.Alive, s.told.Held, s.told.Relay = false, false, false
	f := d.sup.takeInherited(pass.Name(d.index, c.Inode))
	if f == nil {
		return s
	}
	if sock.Inode(f) != c.Inode {
		f.Close()
		return s
	}
	s.file, s.dead = f, false // should it be, it shows
	d.watch(s)
	return s
}

// takeInherited returns the inherited socket of a name, or nil.
func (s *Supervisor) takeInherited(name string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.inherited {
		if f.Name == name {
			s.inherited = append(s.inherited[:i:i], s.inherited[i+1:]...)
			return f.File
		}
	}
	return nil
}

// dropInherited closes the sockets that belong to nothing: those of the devices for which so
// is true, or all.
func (s *Supervisor) dropInherited(so func(kernel.Index) bool) {
	s.mu.Lock()
	var drop, rest []Socket
	for _, f := range s.inherited {
		if so == nil || so(pass.Device(f.Name)) {
			drop = append(drop, f)
		} else {
			rest = append(rest, f)
		}
	}
	s.inherited = rest
	s.mu.Unlock()
	for _, f := range drop {
		f.File.Close()
		s.worker.Do(nil, func() { s.dropStored(f.Name) })
	}
}
