package supervise

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"nbd.example/nbd/internal/tasks"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise/relay"
	"nbd.example/nbd/supervise/sock"
)

// Device is a kernel device that a Supervisor keeps. All methods may be called
// concurrently.
type Device struct {
	sup     *Supervisor
	index   kernel.Index
	targets []*target
	local   Local // nil if other processes serve
	log     *slog.Logger

	kick  chan struct{}      // holds one when a socket has hung up
	calls chan func(*keeper) // for the keeper to run
	done  chan struct{}

	detaching tasks.Turn // of who detaches or releases
	recorded  bool       // the worker's: the file was written, once

	mu     sync.Mutex
	st     State // but for Connections, which are in slots
	slots  []*slot
	news   chan struct{} // closed at the next change of st or slots
	deaths chan struct{} // closed when the kernel next tells of a dead connection
	quit   chan struct{} // closed to stop the keeper; nil when there is none
	ended  chan struct{} // closed when it has stopped
	err    error
}

// slot is one of the kernel's connections.
type slot struct {
	file    *os.File // the kernel's socket; nil if only the kernel has it
	relay   *relay.Relay
	unwatch func()
	told    Connection // what does not change
	dead    bool
	leaving bool // it is being replaced by choice
}

// connection describes s.
func (s *slot) connection() Connection {
	c := s.told
	c.Alive, c.Held, c.Relay = !s.dead, s.file != nil, s.relay != nil
	return c
}

// lastAnswers is how long the kernel may take to read what a server has sent before it ended
// a connection.
const lastAnswers = time.Second

// endAll ends connections, those of them that we have, for the kernel and for the server.
// Nothing that was sent on them and has not arrived will: the kernel sends that on another
// one.
func endAll(slots []*slot, patience time.Duration) {
	var files []*os.File
	for _, s := range slots {
		if s.file != nil {
			files = append(files, s.file)
		}
	}
	sock.End(files, patience)
	for _, s := range slots {
		if s.relay != nil {
			s.relay.Drop()
		}
	}
}

// release closes what we have of the socket. Its connection lives on if the kernel has
// it, unless it goes through a relay.
func (s *slot) release() {
	if s.unwatch != nil {
		s.unwatch()
	}
	if s.file != nil {
		s.file.Close()
	}
	if s.relay != nil {
		s.relay.Close()
	}
	s.file, s.relay, s.unwatch = nil, nil, nil
}

// newDevice makes the device that st describes, which the kernel has attached.
func (s *Supervisor) newDevice(st State, targets []*target, local Local) *Device {
	d := &Device{
		sup: s, index: st.Index, targets: targets, local: local, st: st,
		log:  s.log.With("device", st.Device),
		kick: make(chan struct{}, 1), calls: make(chan func(*keeper)), done: make(chan struct{}),
		news: make(chan struct{}), deaths: make(chan struct{}), detaching: tasks.NewTurn(),
	}
	return d
}

// Index returns the kernel's number of the device.
func (d *Device) Index() kernel.Index { return d.index }

// Status returns what is known of the device. It asks nobody.
func (d *Device) Status() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status()
}

// status is Status under the mutex.
func (d *Device) status() State {
	st := d.st
	st.Connections = make([]Connection, len(d.slots))
	for i, s := range d.slots {
		st.Connections[i] = s.connection()
	}
	return st
}

// Changed returns a channel that is closed at the next change of Status.
func (d *Device) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.news
}

// Done is closed when the device is no longer kept. Err says why.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err tells why the device is no longer kept, [ErrDetached] and those beside it, or nil
// as long as it is.
func (d *Device) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// update changes the state by f, under the mutex, and tells everybody.
func (d *Device) update(f func(*State)) {
	d.mu.Lock()
	phase, reason := d.st.Phase, d.st.Reason
	f(&d.st)
	if d.st.Phase != phase || d.st.Reason != reason {
		d.st.Changed = time.Now()
	}
	close(d.news)
	d.news = make(chan struct{})
	d.mu.Unlock()
	d.sup.worker.Do(d, func() { d.sup.record(d) })
}

// recordNow writes the state file.
func (d *Device) recordNow(ctx context.Context) {
	d.update(func(*State) {})
	d.sup.worker.Flush(ctx)
}

// nudge makes the keeper look at the sockets. It does not wait.
func (d *Device) nudge() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// died notes that the kernel told of a dead connection.
func (d *Device) died() {
	d.mu.Lock()
	close(d.deaths)
	d.deaths = make(chan struct{})
	d.mu.Unlock()
	d.nudge()
}

// nextDeath returns a channel that is closed when the kernel next tells of a dead
// connection.
func (d *Device) nextDeath() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.deaths
}

// call has the keeper run f.
func (d *Device) call(ctx context.Context, f func(*keeper)) error {
	select {
	case d.calls <- f:
		return nil
	case <-d.done:
		return d.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// identifier returns what the kernel knows the device by.
func (d *Device) identifier() string { return d.st.Identifier } // it never changes

// start starts the keeper. suspect says that connections may have died unseen.
func (d *Device) start(suspect bool) {
	d.mu.Lock()
	d.quit, d.ended = make(chan struct{}), make(chan struct{})
	quit, ended := d.quit, d.ended
	d.mu.Unlock()
	k := newKeeper(d, suspect)
	go func() {
		defer close(ended)
		k.run(quit)
	}()
}

// stop ends the keeper, and with it what it is about to do.
func (d *Device) stop() {
	d.mu.Lock()
	quit, ended := d.quit, d.ended
	d.quit = nil
	d.mu.Unlock()
	if quit != nil {
		close(quit)
	}
	if ended != nil {
		<-ended
	}
}

// end notes that the device is no longer kept, and why. The keeper has stopped, or is
// who calls. remove takes its file away.
func (d *Device) end(err error, phase Phase, remove bool) {
	d.mu.Lock()
	if d.err != nil {
		d.mu.Unlock()
		return
	}
	d.err = err
	d.st.Phase, d.st.Changed = phase, time.Now()
	for _, s := range d.slots {
		s.release()
	}
	if remove {
		d.slots = nil
	}
	close(d.news)
	d.news = make(chan struct{})
	d.mu.Unlock()
	if d.local != nil {
		d.local.Close()
	}
	d.sup.forget(d, remove)
	close(d.done)
}
