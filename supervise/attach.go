package supervise

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"time"

	"nbd.example/nbd/internal/backoff"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise/sock"
)

// Attach attaches a kernel device and keeps it until it is detached, or the supervisor
// closed. ctx bounds only the call. If this supervisor keeps a device with the same
// identifier, that is returned, also if spec wants another device; it is an error if it does
// not suit otherwise: see [State.Suits]. If another process keeps it, or nobody ever did,
// the error is an [*AttachedError]; if nobody keeps it any more, and it suits, it is adopted.
func (s *Supervisor) Attach(ctx context.Context, spec *Spec) (*Device, error) {
	wanted := spec
	spec, err := spec.complete()
	if err == nil && spec.Bare {
		err = errors.New("attach: an export that nothing is known of cannot be kept")
	}
	if err != nil {
		return nil, err
	}
	d, end, err := s.begin(ctx, spec.Identifier)
	if err != nil {
		return nil, err
	}
	if d != nil {
		st := d.Status()
		if err := st.standsIn(wanted); err != nil {
			return nil, err
		}
		return d, nil
	}
	defer end()
	if d, err := s.elsewhere(ctx, spec, wanted); d != nil || err != nil {
		return d, err
	}
	targets, local, err := s.targets(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	d, err = s.attach(ctx, spec, targets, local)
	if err != nil {
		if local != nil {
			local.Close()
		}
		return nil, err
	}
	s.scan(ctx, d.index, spec.Client)
	return d, nil
}

// begin returns the device with an identifier that is kept here, or keeps the identifier for
// the caller, also from other processes, until end is called.
func (s *Supervisor) begin(ctx context.Context, identifier string) (d *Device, end func(), err error) {
	d, release, err := s.reserve(ctx, identifier)
	if d != nil || err != nil {
		return d, nil, err
	}
	unlock, err := s.lock(ctx, identifier)
	if err != nil {
		release()
		return nil, nil, err
	}
	return nil, func() { unlock(); release() }, nil
}

// reserve returns the device with an identifier, or keeps the identifier for the caller
// until release is called.
func (s *Supervisor) reserve(ctx context.Context, identifier string) (d *Device, release func(), err error) {
	for {
		s.mu.Lock()
		if d := s.known(identifier); d != nil {
			s.mu.Unlock()
			news := d.Changed()
			if d.Err() == nil && d.Status().Phase != Detaching {
				return d, nil, nil
			}
			select {
			case <-news: // it is being detached, then another one can be attached
				continue
			case <-d.Done(): // it was forgotten before
				continue
			case <-ctx.Done():
				return nil, nil, context.Cause(ctx)
			}
		}
		closed, handed, wait := s.closed, s.handed, s.pending[identifier]
		if s.paused != nil {
			wait = s.paused
		}
		if !closed && !handed && wait == nil {
			mine := make(chan struct{})
			s.pending[identifier] = mine
			s.mu.Unlock()
			return nil, func() {
				s.mu.Lock()
				delete(s.pending, identifier)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		switch {
		case handed:
			return nil, nil, ErrHandedOver
		case closed:
			return nil, nil, ErrClosed
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

// known returns the device with an identifier, under the mutex.
func (s *Supervisor) known(identifier string) *Device {
	for _, d := range s.devices {
		if d.identifier() == identifier {
			return d
		}
	}
	return nil
}

// lock keeps other processes from attaching the same identifier.
func (s *Supervisor) lock(ctx context.Context, identifier string) (unlock func(), err error) {
	h := fnv.New64a()
	h.Write([]byte(identifier))
	unlock, err = s.lockAt(ctx, int64(h.Sum64()>>2))
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("another process is attaching %q: %w", identifier, err)
	}
	return unlock, err
}

// lockAt takes one of the locks that all processes with the same directory share.
func (s *Supervisor) lockAt(ctx context.Context, at int64) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.cfg.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		ok, err := lockByte(f, at)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if ok {
			return func() { f.Close() }, nil
		}
		select {
		case <-time.After(wait): // the system has no way to wait for this and for ctx
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		}
	}
}

// elsewhere looks for a device with the identifier that this supervisor does not keep.
// One that nobody keeps is adopted, if it suits who wants it.
func (s *Supervisor) elsewhere(ctx context.Context, spec, wanted *Spec) (*Device, error) {
	st, err := s.other(ctx, spec)
	switch {
	case st == nil || err != nil:
		return nil, err
	case st.Phase == Unkept || s.foreign(st):
		return nil, &AttachedError{State: *st}
	}
	if err := st.standsIn(wanted); err != nil {
		return nil, err
	}
	return s.adopt(ctx, st)
}

// attach makes a new device.
func (s *Supervisor) attach(ctx context.Context, spec *Spec, targets []*target, local Local) (*Device, error) {
	st := State{Version: stateVersion, Identifier: spec.Identifier, Spec: *spec, Phase: Attached, Process: s.self}
	peers, err := s.first(ctx, &st, targets)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	asked := s.askBeside(&st, peers[0])
	if err := s.connect(ctx, &st, peers); err != nil {
		for _, p := range peers {
			p.destroy()
		}
		return nil, fmt.Errorf("attach: %w", err)
	}
	st.Device, st.Since, st.Control = st.Index.Path(), time.Now(), s.controlPath()
	st.Changed = st.Since
	if info, err := s.cfg.Kernel.Info(st.Index); err == nil {
		st.Shown = info.Identifier == st.Identifier
	}
	d := s.newDevice(st, targets, local)
	for _, p := range peers {
		d.slots = append(d.slots, d.slotFor(p))
	}
	<-d.detaching // nobody gets it before it has its keeper
	defer d.detaching.Give()
	kept := s.keep(ctx, d)
	if err = kept; err == nil {
		d.recordNow(ctx) // should this process be killed, the next one knows what to keep
		err = d.limit(ctx, maxPayload(peers[0]))
	}
	if err != nil {
		d.unlimit(ctx)
		s.cfg.Kernel.Disconnect(context.WithoutCancel(ctx), d.index)
		d.end(err, Gone, kept == nil)
		return nil, fmt.Errorf("attach: %w", err)
	}
	d.learn(ctx, asked)
	d.recordNow(ctx)
	d.start(false)
	d.log.Info("attached", "server", peers[0].from.name, "size", st.Size, "block_size", st.BlockSize, "connections", len(peers), "identifier", st.Identifier)
	return d, nil
}

// scan has the kernel look for partitions. Where udev runs they are found anyway.
func (s *Supervisor) scan(ctx context.Context, i kernel.Index, client kernel.ClientFlags) {
	if client&kernel.DisconnectOnClose != 0 {
		return // who looks would be the last one to close it
	}
	ctx, cancel := context.WithTimeout(ctx, s.times.scan)
	defer cancel()
	if err := s.cfg.Kernel.Rescan(ctx, i); err != nil {
		s.log.Debug("the partition table was not read", "device", i.Path(), "err", err)
	}
}

// first makes the first connections, with patience where that is wanted.
func (s *Supervisor) first(ctx context.Context, st *State, targets []*target) ([]*peer, error) {
	wait := backoff.New(s.cfg.Backoff.First, s.cfg.Backoff.Most)
	for said := ""; ; {
		var failed []error
		for _, t := range targets {
			peers, err := s.firstTo(ctx, st, t)
			if err == nil {
				return peers, nil
			}
			failed = append(failed, fmt.Errorf("%s: %w", t.name, err))
			t.failed()
		}
		err := errors.Join(failed...)
		if !st.Spec.Wait || ctx.Err() != nil {
			return nil, err
		}
		if text := err.Error(); text != said {
			said = text
			s.log.Warn("waiting for a server", "identifier", st.Identifier, "err", err)
		}
		select {
		case <-time.After(wait.Next()):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// firstTo makes the first connections to one server, and settles what the kernel will
// be told.
func (s *Supervisor) firstTo(ctx context.Context, st *State, t *target) (peers []*peer, err error) {
	defer func() {
		if err != nil {
			discard(peers)
		}
	}()
	one := func() error {
		ctx, cancel := context.WithTimeout(ctx, st.Spec.ConnectTimeout)
		defer cancel()
		p, err := t.connect(ctx, st.Spec.ExportName, true)
		if err == nil {
			peers = append(peers, p)
		}
		return err
	}
	if err := one(); err != nil {
		return peers, err
	}
	if err := st.geometry(peers[0]); err != nil {
		return peers, err
	}
	n := several(st.Spec.Connections, peers[0].export.Flags)
	if n < st.Spec.Connections {
		s.log.Warn("one connection is made in place of several: the server does not offer NBD_FLAG_CAN_MULTI_CONN, so it does not promise that they show the same", "server", t.name, "wanted", st.Spec.Connections)
	}
	st.Connections = make([]Connection, n)
	for len(peers) < n {
		if err := one(); err != nil {
			return peers, fmt.Errorf("connection %d of %d: %w", len(peers)+1, n, err)
		}
		if err := st.compare(peers[len(peers)-1]); err != nil {
			return peers, fmt.Errorf("connection %d of %d: %w", len(peers), n, err)
		}
	}
	return peers, nil
}

// connect has the kernel attach the device.
func (s *Supervisor) connect(ctx context.Context, st *State, peers []*peer) error {
	a := &kernel.Attach{
		Any: st.Spec.Device == "", Size: st.Size, BlockSize: st.BlockSize, Flags: st.Flags,
		Timeout: st.Timeout, DeadTimeout: st.DeadTimeout, Client: st.Spec.Client, Identifier: st.Identifier,
	}
	if !a.Any {
		i, err := kernel.ParseIndex(st.Spec.Device)
		if err != nil {
			return err
		}
		a.Index = i
	}
	for _, p := range peers {
		a.Sockets = append(a.Sockets, p.file)
	}
	until := time.Now().Add(s.times.going)
	for {
		i, err := s.cfg.Kernel.Connect(ctx, a)
		if err == nil {
			st.Index = i
			return nil
		}
		// What has just been detached stays busy until the last one has closed it.
		if a.Any || !errors.Is(err, kernel.ErrBusy) || time.Now().After(until) || !s.leftover(a.Index) {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// leftover reports whether a device is detached, but not yet gone.
func (s *Supervisor) leftover(i kernel.Index) bool {
	info, err := s.cfg.Kernel.Info(i)
	return err == nil && info.PID == 0 && len(info.Mounts)+len(info.Holders) == 0 && !info.Swap
}

// asked is what came of asking a server on a second connection.
type asked struct {
	answer *answer
	err    error
	alive  bool // the first connection was alive afterwards, so it was the same server
}

// askBeside asks the server of p, on a connection of its own, while other things are
// done. Nothing is lost but what it would tell if it takes no second one.
func (s *Supervisor) askBeside(st *State, p *peer) <-chan asked {
	c := make(chan asked, 1)
	timeout := st.Spec.ConnectTimeout
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		a, err := p.from.ask(ctx)
		if err == nil && a.who != p.who {
			err = errors.New("the server proves by TLS to be another one on its second connection")
		}
		c <- asked{a, err, !sock.HungUp(p.file)}
	}()
	return c
}

// learn notes what the server tells, at once if it does so soon, and else later.
func (d *Device) learn(ctx context.Context, c <-chan asked) {
	select {
	case r := <-c:
		d.learned(r)
		return
	case <-time.After(d.sup.times.ask):
	case <-ctx.Done():
	}
	go func() {
		r := <-c
		d.learned(r)
	}()
}

func (d *Device) learned(r asked) {
	switch {
	case r.err != nil:
		d.log.Warn("the server tells nothing on a second connection: until it does, it will not be noticed that its export grows, or is replaced", "err", r.err)
	case r.alive:
		d.update(func(st *State) {
			st.Seen.Asked, st.Seen.Instance = true, r.answer.instance
			// The reference's server says by INFO that an export has no bytes.
			e := &r.answer.export
			st.Seen.InfoAgrees = r.answer.told && e.Size >= st.Seen.Size && e.Flags == st.Seen.Flags
		})
	}
}
