package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise/sock"
)

// spareTries is how often a socket is offered in place of a connection of which nobody
// knows whether it is dead.
const spareTries = 4

// attempt is one attempt to replace connections.
type attempt struct {
	d       *Device
	st      *State
	dead    []*slot // to be replaced
	spare   int     // how many more may be
	targets []*target
	least   uint64                          // what the export must have, in bytes
	before  func(ctx context.Context) error // called before dead ones are shut down; may be nil
}

// run makes the attempt. What the kernel has taken is returned, also with an error.
func (a *attempt) run(ctx context.Context) ([]*peer, error) {
	reconfigures := a.d.sup.cfg.Kernel.Can().Reconfigure
	switch is, err := a.st.gone(a.d.sup.cfg.Kernel); {
	case err != nil:
		return nil, err
	case is && reconfigures:
		return nil, ErrTakenAway
	case is:
		return nil, ErrLost
	case !reconfigures:
		return nil, errors.New("what is attached by ioctl keeps its connections: none can be replaced")
	}
	peers, err := a.connect(ctx)
	if len(peers) == 0 {
		return nil, err
	}
	if a.before != nil {
		if err := a.before(ctx); err != nil {
			discard(peers)
			return nil, err
		}
	}
	endAll(a.dead[:min(len(peers), len(a.dead))], lastAnswers)
	var taken []*peer
	for i, p := range peers {
		certain := i < len(a.dead)
		ok, failed := a.offer(ctx, p, certain)
		if ok {
			taken = append(taken, p)
			continue
		}
		if failed != nil || !certain {
			discard(peers[i+1:])
			return taken, errors.Join(failed, err)
		}
	}
	return taken, err
}

// discard closes connections that were not offered.
func discard(peers []*peer) {
	for _, p := range peers {
		p.discard()
	}
}

// connect makes the connections to the first server that has what was attached.
func (a *attempt) connect(ctx context.Context) ([]*peer, error) {
	var failed []error
	for _, t := range a.targets {
		peers, err := a.connectTo(ctx, t)
		if len(peers) > 0 {
			return peers, err
		}
		failed = append(failed, fmt.Errorf("%s: %w", t.name, err))
		if ctx.Err() != nil {
			break
		}
		t.failed()
	}
	return nil, errors.Join(failed...)
}

// connectTo makes the connections to one server, as many as it lets us have, and
// compares what it says. An error along with connections says why there are not more.
func (a *attempt) connectTo(ctx context.Context, t *target) ([]*peer, error) {
	var peers []*peer
	var short error
	for range len(a.dead) + a.spare {
		p, err := a.connectOne(ctx, t)
		if err == nil {
			peers = append(peers, p)
			continue
		}
		var changed *changedError
		if len(peers) == 0 || errors.As(err, &changed) {
			discard(peers)
			return nil, err
		}
		short = err
		break
	}
	if err := a.verify(ctx, t); err != nil {
		discard(peers)
		return nil, err
	}
	for _, p := range peers {
		// What was asked afterwards is true of these only if the server is the same.
		if sock.HungUp(p.file) {
			discard(peers)
			return nil, errors.New("the server hung up")
		}
	}
	return peers, short
}

// connectOne makes one connection, and compares.
func (a *attempt) connectOne(ctx context.Context, t *target) (*peer, error) {
	ctx, cancel := context.WithTimeout(ctx, a.st.Spec.ConnectTimeout)
	defer cancel()
	p, err := t.connect(ctx, a.st.Spec.ExportName, false)
	if err != nil {
		return nil, err
	}
	if err = a.st.compare(p); err == nil && p.export.Size < a.least {
		err = fmt.Errorf("the server's export has %d bytes, fewer than %d", p.export.Size, a.least)
	}
	if err != nil {
		p.discard()
		return nil, err
	}
	return p, nil
}

// verify asks the server whether the export is the instance that was attached.
func (a *attempt) verify(ctx context.Context, t *target) error {
	if a.st.Seen.Instance == "" || a.st.Spec.AnyInstance {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.st.Spec.ConnectTimeout)
	defer cancel()
	answer, err := t.ask(ctx)
	if err != nil {
		return fmt.Errorf("ask which instance of the export it is: %w", err)
	}
	return a.st.compareAnswer(t.name, answer)
}

// offer gives the kernel one connection, and reports whether it was taken. If it was
// not, the connection is closed. certain says that one is dead; then the kernel is given
// the time to find that out.
func (a *attempt) offer(ctx context.Context, p *peer, certain bool) (bool, error) {
	limit, cancel := context.WithTimeout(ctx, a.d.sup.times.offer)
	defer cancel()
	wait := time.Millisecond
	for try := 1; ; try++ {
		death := a.d.nextDeath()
		err := a.d.reconfigure(limit, &kernel.Change{Sockets: []*os.File{p.file}, Timeout: &a.st.Timeout, DeadTimeout: &a.st.DeadTimeout})
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, ErrTakenAway), errors.Is(err, kernel.ErrNotConnected), errors.Is(err, kernel.ErrIdentifier), errors.Is(err, kernel.ErrNoDevice):
			p.discard()
			return false, ErrTakenAway
		case !errors.Is(err, kernel.ErrNotTaken):
			p.destroy() // the kernel may have it: then it must not stay there unseen
			return false, fmt.Errorf("hand over to the kernel: %w", err)
		case !certain && try == spareTries:
			p.discard()
			return false, nil
		}
		select {
		case <-death:
		case <-time.After(wait):
			wait = min(2*wait, 250*time.Millisecond)
		case <-limit.Done():
			p.discard()
			return false, fmt.Errorf("hand over to the kernel: %w", err)
		}
		if sock.HungUp(p.file) {
			p.destroy()
			return false, errors.New("the server hung up before the kernel took the connection")
		}
	}
}

// reconfigure changes the kernel's device, if it is ours. The kernel itself compares
// identifiers only where the device has one.
func (d *Device) reconfigure(ctx context.Context, c *kernel.Change) error {
	st := d.Status()
	switch is, err := st.gone(d.sup.cfg.Kernel); {
	case err != nil:
		return err
	case is:
		return ErrTakenAway
	}
	ctx, cancel := context.WithTimeout(ctx, d.sup.times.call)
	defer cancel()
	c.Identifier = d.identifier()
	return d.sup.cfg.Kernel.Reconfigure(ctx, d.index, c)
}
