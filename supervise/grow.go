package supervise

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise/sock"
)

// resizeDead is for how long requests wait for a connection while the size is being
// changed: see setSize.
const resizeDead = time.Minute

// resize is a call of Device.Resize.
type resize struct {
	size   int64 // 0 for all that the server has
	wanted bool  // by somebody: from now on the device does not grow beyond size by itself
	done   chan resized
}

type resized struct {
	size int64
	err  error
}

func (r *resize) answer(size int64, err error) { r.done <- resized{size, err} }

// Resize makes the device as large as the server's export is now, or, if size is not 0,
// that many bytes, if the export has them; then it grows no further by itself until it is
// resized again. It never shrinks. It returns the new size. It fails while connections are
// dead, since the kernel would hang.
func (d *Device) Resize(ctx context.Context, size int64) (int64, error) {
	r := &resize{size: size, wanted: true, done: make(chan resized, 1)}
	if err := d.call(ctx, func(k *keeper) { k.resizes = append(k.resizes, r) }); err != nil {
		return 0, err
	}
	select {
	case got := <-r.done:
		if got.err != nil {
			return 0, fmt.Errorf("resize %s: %w", d.st.Device, got.err)
		}
		return got.size, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// refuseResizes answers who wants a resize while connections are dead.
func (k *keeper) refuseResizes() {
	for _, r := range k.resizes {
		r.answer(0, errors.New("connections are dead: not before they are replaced, because the kernel would hang"))
	}
	k.resizes = nil
}

// grow begins a change of the size, if one is wanted. All connections are alive.
func (k *keeper) grow() {
	d := k.d
	st := d.Status()
	// Connections that were made anew may have told of a larger export.
	known := k.servable()
	switch {
	case len(k.resizes) > 0:
		r := k.resizes[0]
		k.resizes = k.resizes[1:]
		k.growTo(&st, r)
	case st.grows() && blocks(known, st.BlockSize) > st.Size && known != k.failedSize:
		k.growTo(&st, &resize{size: blocks(known, st.BlockSize), done: make(chan resized, 1)})
	case k.due:
		k.due = false
		switch {
		case !st.Seen.Asked:
			k.ask(&st)
		case st.Seen.InfoAgrees && st.grows():
			k.growTo(&st, &resize{done: make(chan resized, 1)})
		}
	}
}

// servable returns what all connections serve, in bytes.
func (k *keeper) servable() uint64 {
	var least uint64
	for i, s := range k.d.slots {
		if i == 0 || s.told.Size < least {
			least = s.told.Size
		}
	}
	return least
}

// blocks rounds a size down to what the kernel can use.
func blocks(size uint64, block int64) int64 {
	n := int64(min(size, 1<<63-1))
	return n - n%block
}

// growTo begins a resize.
func (k *keeper) growTo(st *State, r *resize) {
	d, known, candidates := k.d, k.servable(), k.candidates()
	var small []*slot // to be replaced: they would not serve the new end
	slots := d.slots
	k.start(func(ctx context.Context) func() {
		want, err := d.wanted(ctx, st, r.size, known, candidates)
		if err != nil || want <= st.Size {
			return func() { k.grown(st, r, want, err) }
		}
		for _, s := range slots {
			if s.told.Size < uint64(want) {
				small = append(small, s)
			}
		}
		var taken []*peer
		if len(small) > 0 {
			taken, err = d.renew(ctx, st, small, candidates, want)
		}
		restored := true
		if err == nil {
			restored, err = d.setSize(ctx, st, want)
		}
		return func() {
			k.unsure = k.unsure || !restored
			d.renewed(small, len(taken))
			for _, p := range taken {
				k.install(p)
			}
			if len(small) > 0 && !k.over {
				k.tell(nil) // one of the old ones may have died before its time
			}
			k.grown(st, r, want, err)
		}
	})
}

// grown applies the outcome of a resize.
func (k *keeper) grown(st *State, r *resize, size int64, err error) {
	d := k.d
	k.failedSize = k.servable()
	switch {
	case k.over && err != nil:
	case err != nil:
		d.log.Warn("the device keeps its size", "err", err)
	case size > st.Size:
		k.failedSize = 0
		d.log.Info("the device has grown", "from", st.Size, "to", size)
		d.update(func(st *State) { st.Size, st.Seen.Size = size, max(st.Seen.Size, uint64(size)) })
	}
	if r.wanted && err == nil {
		d.update(func(st *State) { st.Limit = r.size })
	}
	r.answer(max(size, st.Size), err)
}

// wanted finds out which size is wanted and to be had.
func (d *Device) wanted(ctx context.Context, st *State, size int64, known uint64, candidates []*target) (int64, error) {
	if size > 0 && size < st.Size {
		return 0, fmt.Errorf("the device has %d bytes, and does not shrink to %d", st.Size, size)
	}
	if size > 0 && uint64(size) <= known {
		return blocks(uint64(size), st.BlockSize), nil
	}
	if !st.Seen.InfoAgrees || len(candidates) == 0 {
		return 0, errors.New("this server does not tell the size of its export but to a new connection: detach and attach again")
	}
	ctx, cancel := context.WithTimeout(ctx, st.Spec.ConnectTimeout)
	defer cancel()
	a, err := candidates[0].ask(ctx)
	switch {
	case err != nil:
		return 0, fmt.Errorf("ask %s: %w", candidates[0].name, err)
	case !a.told:
		return 0, errors.New("the server does not tell the size of its export any more")
	case st.Seen.Instance != "" && !st.Spec.AnyInstance:
		if err := st.compareAnswer(candidates[0].name, a); err != nil {
			return 0, err
		}
	}
	got := blocks(a.export.Size, st.BlockSize)
	switch {
	case size == 0:
		return max(got, st.Size), nil
	case size > got:
		return 0, fmt.Errorf("the server's export has %d bytes, fewer than %d", a.export.Size, size)
	}
	return blocks(uint64(size), st.BlockSize), nil
}

// renew replaces connections that are alive, in a moment without requests: one that is
// under way would be sent again only after the request timeout.
func (d *Device) renew(ctx context.Context, st *State, small []*slot, candidates []*target, want int64) ([]*peer, error) {
	if err := d.leaving(small); err != nil {
		return nil, err
	}
	a := &attempt{d: d, st: st, dead: small, targets: candidates[:1], least: uint64(want), before: d.quiet}
	taken, err := a.run(ctx)
	if err == nil && len(taken) < len(small) {
		err = errors.New("not all connections could be replaced by some that serve the new size")
	}
	return taken, err
}

// leaving marks connections that will be replaced though they are alive.
func (d *Device) leaving(small []*slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range small {
		if s.file == nil {
			return errors.New("a connection was made by an earlier supervisor and cannot be replaced; it serves only the old size")
		}
	}
	for _, s := range small {
		s.leaving = true
	}
	return nil
}

// renewed notes that the first n of these connections have others in their place, and that the
// rest stays: when one of those dies, that is news.
func (d *Device) renewed(small []*slot, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, s := range small {
		s.leaving = i < n
		s.dead = s.dead || i < n
	}
}

// quiet waits for a moment without requests.
func (d *Device) quiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.sup.times.quiet)
	defer cancel()
	for {
		info, err := d.sup.cfg.Kernel.Info(d.index)
		if err != nil {
			return err
		}
		if info.Reads+info.Writes == 0 {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the device has no moment without requests, and its connections must be replaced: %d are under way", info.Reads+info.Writes)
		}
	}
}

// setSize tells the kernel. Kernels from 6.10 on let all requests end first, and take no
// other order meanwhile, not even new sockets. Should a connection die in this moment,
// what was sent on it could not end before it is given up: so while the size changes
// requests do not wait for ever, but for a minute. restored says whether that is over.
func (d *Device) setSize(ctx context.Context, st *State, size int64) (restored bool, err error) {
	if d.anyDead() {
		return true, errors.New("a connection has died: not before it is replaced, because the kernel would hang")
	}
	if st.DeadTimeout <= resizeDead {
		return true, d.reconfigure(ctx, &kernel.Change{Size: size})
	}
	short, long := resizeDead, st.DeadTimeout
	// An error may mean that the kernel does not answer now, and does it later.
	if err = d.reconfigure(ctx, &kernel.Change{DeadTimeout: &short}); err == nil {
		err = d.reconfigure(ctx, &kernel.Change{Size: size})
	}
	return d.reconfigure(context.WithoutCancel(ctx), &kernel.Change{DeadTimeout: &long}) == nil, err
}

// anyDead looks for a connection that has hung up. Those that were renewed a moment ago
// are the kernel's no more.
func (d *Device) anyDead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.slots {
		if s.file != nil && !s.dead && !s.leaving && sock.HungUp(s.file) {
			return true
		}
	}
	return false
}
