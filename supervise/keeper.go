package supervise

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nbd.example/nbd/internal/backoff"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise/sock"
)

// steady is how long a device must have had all its connections for the next attempt
// to be made at once again: a server that dies of each connection is not hammered.
const steady = time.Second

// keeper is the goroutine that keeps one device. It alone changes the device's slots.
// What takes time is done by a job, one at a time, in a goroutine of its own, so that
// the keeper always answers; when a job has ended, the keeper applies what it returned.
type keeper struct {
	d       *Device
	backoff *backoff.Backoff
	timer   *time.Timer
	waiting bool // for the timer, before the next attempt
	taken   time.Time
	// suspect says that of the connections that only the kernel has, some may be dead.
	suspect bool
	// unsure says that the kernel may have another DeadTimeout than it should.
	unsure bool
	said   string // what was logged last

	job    context.CancelFunc // nil if there is none
	over   bool               // the keeper stops; what was begun fails because of that
	result chan func()

	// asking says that the job is to ask for what the server did not tell at first. askWaits
	// is how many times that is left out, and lastWaits how many it was after the last
	// failure.
	asking              bool
	askWaits, lastWaits int

	poll    *time.Timer // nil if sizes are not asked for
	due     bool
	resizes []*resize // that were asked for
	// failedSize is what the connections served when the size could not be changed, so
	// that it is not tried again and again.
	failedSize uint64
}

func newKeeper(d *Device, suspect bool) *keeper {
	k := &keeper{
		d: d, backoff: backoff.New(d.sup.cfg.Backoff.First, d.sup.cfg.Backoff.Most), suspect: suspect, unsure: suspect,
		timer: time.NewTimer(time.Hour), result: make(chan func()),
	}
	k.timer.Stop()
	if every := d.sup.resizeInterval(); every > 0 && len(d.targets) > 0 {
		k.poll = time.NewTimer(every)
	}
	return k
}

// run keeps the device until quit is closed or the device is gone.
func (k *keeper) run(quit <-chan struct{}) {
	defer k.stop()
	var poll <-chan time.Time
	if k.poll != nil {
		poll = k.poll.C
	}
	death := k.d.nextDeath()
	for k.d.Err() == nil {
		k.look()
		k.next()
		select {
		case <-quit:
			return
		case <-k.d.kick:
		case <-death:
			death = k.d.nextDeath()
			k.suspect = k.suspect || k.foreign() > 0
		case <-k.timer.C:
			k.waiting = false
		case <-poll:
			k.due = true
			k.poll.Reset(k.d.sup.resizeInterval())
		case f := <-k.d.calls:
			f(k)
		case apply := <-k.result:
			k.job()
			k.job = nil
			apply()
		}
	}
}

// stop ends the job, and whoever waits for a resize.
func (k *keeper) stop() {
	k.over = true
	k.timer.Stop()
	if k.poll != nil {
		k.poll.Stop()
	}
	if k.job != nil {
		k.job()
		apply := <-k.result
		if k.d.Err() == nil {
			apply() // what the kernel has taken is ours
		}
	}
	for _, r := range k.resizes {
		r.answer(0, errInterrupted)
	}
	k.resizes = nil
}

// start runs f as a job. The function that it returns is run by the keeper.
func (k *keeper) start(f func(ctx context.Context) (apply func())) {
	ctx, cancel := context.WithCancel(context.Background())
	k.job = cancel
	go func() { k.result <- f(ctx) }()
}

// look finds out which sockets have hung up. Those are shut down at once, so that the
// kernel knows, too: it takes a new socket only in place of one that it knows to be dead.
func (k *keeper) look() {
	var hung []*slot
	for _, s := range k.d.slots {
		if !s.dead && s.file != nil && sock.HungUp(s.file) {
			hung = append(hung, s)
		}
	}
	endAll(hung, lastAnswers)
	died := false
	for _, s := range hung {
		s.unwatch()
		s.unwatch = func() {}
		k.d.mu.Lock()
		s.dead = true
		leaving := s.leaving
		k.d.mu.Unlock()
		if !leaving {
			died = true
			k.d.log.Warn("a connection has died", "server", s.told.Server)
		}
	}
	if died && k.asking {
		k.job() // nothing is to be waited for
	}
	if died {
		k.tell(nil)
		k.pause(time.Since(k.taken) < steady)
	}
}

// pause makes the next attempt wait, if it should, and else begins the waits anew.
func (k *keeper) pause(wait bool) {
	if !wait {
		k.backoff.Reset()
		return
	}
	k.waiting = true
	k.timer.Reset(k.backoff.Next())
}

// foreign returns how many connections only the kernel has.
func (k *keeper) foreign() (n int) {
	for _, s := range k.d.slots {
		if s.file == nil && !s.dead {
			n++
		}
	}
	return n
}

// dead returns the connections that are dead.
func (k *keeper) dead() (list []*slot) {
	for _, s := range k.d.slots {
		if s.dead {
			list = append(list, s)
		}
	}
	return list
}

// next begins what is to be done, if anything is.
func (k *keeper) next() {
	if k.job != nil {
		return
	}
	dead, spare := k.dead(), 0
	if k.suspect {
		spare = k.foreign()
	}
	switch {
	case len(dead)+spare == 0:
		k.suspect = false
		if k.unsure && !k.waiting && k.d.sup.cfg.Kernel.Can().Reconfigure {
			k.restore()
			return
		}
		k.grow()
	case !k.waiting:
		k.refuseResizes()
		k.replace(dead, spare)
	default:
		k.refuseResizes()
	}
}

// replace begins an attempt to replace dead connections, and up to spare of those that
// may be dead.
func (k *keeper) replace(dead []*slot, spare int) {
	d := k.d
	st := d.Status()
	k.suspect = false // until the next death, which may come while the attempt is made
	attempt := &attempt{d: d, st: &st, dead: dead, spare: spare, targets: k.candidates()}
	k.start(func(ctx context.Context) func() {
		taken, err := attempt.run(ctx)
		return func() { k.replaced(attempt, taken, err) }
	})
}

// restore tells the kernel once more how long requests wait for a connection: a change of
// the size that failed, or whoever kept the device before, may have left another time.
func (k *keeper) restore() {
	d := k.d
	limit := d.Status().DeadTimeout
	k.start(func(ctx context.Context) func() {
		err := d.reconfigure(ctx, &kernel.Change{DeadTimeout: &limit})
		return func() {
			if k.unsure = err != nil; err == nil || k.over || k.lost(err) {
				return
			}
			d.log.Warn("the kernel was not told how long requests wait for a connection", "err", err)
			k.pause(true)
		}
	})
}

// lost ends the device if err says that it is attached no more, and reports that.
func (k *keeper) lost(err error) bool {
	for _, end := range []error{ErrTakenAway, ErrLost} {
		if errors.Is(err, end) {
			k.d.log.Info(end.Error())
			k.d.end(end, Gone, true)
			return true
		}
	}
	return false
}

// candidates returns the servers to try. As long as a connection is alive, the others
// must be to the same server: only within one do several connections show one disk.
// proto.md, "Transmission flags", NBD_FLAG_CAN_MULTI_CONN.
func (k *keeper) candidates() []*target {
	certain, likely := "", ""
	for _, s := range k.d.slots {
		switch {
		case s.dead:
		case s.file != nil:
			certain = s.told.Server
		default:
			likely = s.told.Server
		}
	}
	var first, rest []*target
	for _, t := range k.d.targets {
		if t.name == certain || t.name == likely {
			first = append(first, t)
		} else {
			rest = append(rest, t)
		}
	}
	if certain != "" && len(first) > 0 {
		return first
	}
	return append(first, rest...)
}

// replaced applies the outcome of an attempt.
func (k *keeper) replaced(a *attempt, taken []*peer, err error) {
	for _, p := range taken {
		k.install(p)
	}
	if k.lost(err) {
		return
	}
	if err != nil && a.spare > 0 {
		k.suspect = true
	}
	if len(taken) > 0 {
		k.taken, k.failedSize, k.unsure = time.Now(), 0, false
		k.d.log.Info("reconnected", "connections", len(taken), "server", taken[0].from.name)
	}
	if k.over {
		return
	}
	k.tell(err)
	if err != nil {
		k.pause(true)
	}
}

// install puts a connection that the kernel has taken in the place of a dead one.
func (k *keeper) install(p *peer) {
	d := k.d
	fresh := d.slotFor(p)
	d.mu.Lock()
	place := -1
	for i, s := range d.slots {
		if s.dead {
			place = i
			break
		}
		if s.file == nil {
			place = i
		}
	}
	if place < 0 { // it was not dead, and yet the kernel took another
		d.mu.Unlock()
		d.log.Error("the kernel took a connection for which there was no place")
		fresh.release()
		return
	}
	d.slots[place].release()
	d.slots[place] = fresh
	d.st.Reconnects++
	d.st.meet(p)
	d.mu.Unlock()
}

// slotFor makes the slot of a connection that the kernel has taken, and watches it.
func (d *Device) slotFor(p *peer) *slot {
	s := &slot{file: p.file, relay: p.relay, unwatch: func() {}}
	s.told = Connection{Server: p.from.name, Inode: sock.Inode(p.file), Size: p.export.Size}
	d.watch(s)
	return s
}

// watch has the keeper look when s hangs up.
func (d *Device) watch(s *slot) {
	stop, err := d.sup.poller.Watch(s.file, d.nudge)
	if err != nil {
		d.log.Warn("this connection's death will be noticed by the kernel only", "err", err)
		return
	}
	s.unwatch = stop
}

// phaseOf returns what a device is whose connections are these.
func phaseOf(slots []*slot) Phase {
	dead := 0
	for _, s := range slots {
		if s.dead {
			dead++
		}
	}
	switch {
	case dead == 0:
		return Attached
	case dead == len(slots):
		return Reconnecting
	}
	return Degraded
}

// tell notes what the connections are, and why not all of them are alive.
func (k *keeper) tell(err error) {
	d := k.d
	phase, reason := phaseOf(d.slots), ""
	if err != nil {
		reason = err.Error()
		var changed *changedError
		switch {
		case phase == Attached:
			phase = Degraded
		case phase == Reconnecting && errors.As(err, &changed):
			phase = Refused
		}
	} else if phase != Attached {
		reason = "connection lost"
	}
	if reason != "" && err != nil && reason != k.said {
		d.log.Warn("cannot reconnect yet", "state", string(phase), "err", err)
	}
	k.said = reason
	d.update(func(st *State) { st.Phase, st.Reason = phase, reason })
}

// errInterrupted is the answer to what was asked for when the keeper stopped.
var errInterrupted = fmt.Errorf("the device is being detached or handed over")

// gone finds out whether the device is attached no more, by somebody else's doing. He may
// have attached something else there. With an error, nobody knows.
func (st *State) gone(drv kernel.Driver) (bool, error) {
	info, err := drv.Info(st.Index)
	switch {
	case absent(err):
		return true, nil
	case err != nil:
		return false, err
	}
	return info.PID == 0 && info.Size == 0 || st.Replaced(info), nil
}

// absent reports whether err says that there is no such device at all.
func absent(err error) bool {
	return errors.Is(err, kernel.ErrNoDevice) || errors.Is(err, kernel.ErrNoModule)
}

// Replaced reports whether what the system tells of a device of this index is of another
// attachment than that of st, as far as the kernel shows.
func (st *State) Replaced(info *kernel.Info) bool {
	if st.Shown || info.Identifier != "" {
		return info.Identifier != st.Identifier
	}
	return false
}
