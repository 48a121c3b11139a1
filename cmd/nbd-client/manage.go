package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise"
)

// manage does what is asked of devices that are attached.
func (p *program) manage(ctx context.Context) int {
	switch p.flags.Action {
	case clientflags.List:
		return p.listDevices(ctx)
	case clientflags.Status:
		return p.status(ctx)
	case clientflags.Udev:
		return p.udev(ctx)
	case clientflags.Check:
		return p.check(ctx)
	case clientflags.Detach, clientflags.Disconnect:
		return p.detach(ctx)
	case clientflags.Resize:
		return p.resize(ctx)
	case clientflags.Wait:
		return p.wait(ctx)
	case clientflags.Upgrade:
		return p.upgrade(ctx)
	}
	p.log.Error("nothing is known of the action " + string(p.flags.Action))
	return exitError
}

// check is the reference's -c: 0 and the process's number, 1, or 2 after an error. Like there,
// partitions stand for their device, and what is no NBD device is not attached.
func (p *program) check(ctx context.Context) int {
	name := disk(p.flags.Devices[0])
	if _, err := p.index(name); err != nil && strings.HasPrefix(name, "/") && !errors.Is(err, fs.ErrPermission) {
		p.log.Info(err.Error())
		return exitError
	}
	v, err := p.find(ctx, name)
	switch {
	case errors.Is(err, kernel.ErrNoDevice), errors.Is(err, kernel.ErrNoModule):
		return exitError
	case err != nil:
		p.fail(ctx, err)
		return exitUnknown
	case !v.connected:
		return exitError
	}
	if _, err := fmt.Fprintln(p.env.stdout, v.process()); err != nil {
		p.tell(err)
		return exitUnknown
	}
	return exitOK
}

// detach detaches devices, each whatever became of the others. The exit status is that
// of the first one that stays.
func (p *program) detach(ctx context.Context) int {
	driver, err := p.anyDriver()
	if err != nil {
		return p.fail(ctx, err)
	}
	defer driver.Close()
	status := exitOK
	for _, name := range p.flags.Devices {
		err := p.detachOne(ctx, driver, name)
		if err == nil {
			continue
		}
		p.fail(ctx, fmt.Errorf("detach %s: %w", name, err))
		if status == exitOK {
			status = exitError
			if errors.Is(err, kernel.ErrBusy) {
				status = exitBusy
			}
		}
	}
	return status
}

func (p *program) detachOne(ctx context.Context, driver kernel.Driver, name string) error {
	v, err := p.findWith(ctx, driver, name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not gone after %v", patience))
	defer cancel()
	switch {
	case v.connected, v.kept():
	case v.info != nil && !v.info.Gone(): // it was detached while somebody had it open
		return p.awaitGone(ctx, driver, v.index, v.info.PID != 0)
	default:
		p.log.Info(v.index.Path() + " is not attached")
		return nil
	}
	force := p.forced()
	was := *v
	users := usersOf(v.info)
	if users != "" && force {
		p.log.Warn(v.index.Path() + " is in use: " + users)
	}
	if v.kept() {
		if users != "" && !force {
			// What this process sees, the one that keeps the device may not: the client of a
			// root file system lives in a root of its own.
			return &supervise.BusyError{Info: *v.info}
		}
		done, err := p.detachKept(ctx, driver, v, force)
		switch {
		case err != nil && p.isGone(ctx, driver, v.index):
			// The process may have ended before it could answer.
			return p.awaitGone(ctx, driver, v.index, false)
		case err != nil && force:
			p.log.Warn(fmt.Sprintf("process %d, which keeps it, does not detach %s: %v", v.process(), v.index.Path(), err))
		case done:
			return err
		}
	}
	if !force {
		if err := p.unused(ctx, driver, v.index); err != nil {
			return err
		}
	}
	if err := was.still(driver); err != nil {
		return err
	}
	if err := driver.Disconnect(ctx, v.index); err != nil && !errors.Is(err, kernel.ErrNotConnected) {
		return err
	}
	return p.awaitGone(ctx, driver, v.index, users != "")
}

// forced reports whether devices are detached whatever happens on them, as the reference's
// option does.
func (p *program) forced() bool {
	return p.flags.Force || p.flags.Action == clientflags.Disconnect
}

// still returns an error if somebody has attached something else under the number since.
func (v *view) still(driver kernel.Driver) error {
	info, err := driver.Info(v.index)
	switch {
	case errors.Is(err, kernel.ErrNoDevice), errors.Is(err, kernel.ErrNoModule):
		return nil
	case err != nil:
		return fmt.Errorf("whether %s is still the same device cannot be found out: %w", v.index.Path(), err)
	case v.info == nil, info.PID == 0, info.Identifier == v.info.Identifier:
		return nil
	case v.state != nil && info.Identifier == v.state.Identifier: // it was being attached
		return nil
	}
	return fmt.Errorf("%w, and has been attached to something else", supervise.ErrTakenAway)
}

// openLimit is how long others may have a device open before it counts as in use: udev and
// its like open it for a moment.
const openLimit = 3 * time.Second

// unused waits for a moment in which nobody uses a device, if that may come soon.
func (p *program) unused(ctx context.Context, driver kernel.Driver, i kernel.Index) error {
	limit, cancel := context.WithTimeoutCause(ctx, openLimit, errTime)
	defer cancel()
	var seen *kernel.Info // the last time
	claimed := false
	err := poll(limit, func() (bool, error) {
		info, err := driver.Info(i)
		if err != nil {
			return false, err
		}
		seen = info
		if len(info.Mounts)+len(info.Holders) > 0 || info.Swap {
			return false, &supervise.BusyError{Info: *info}
		}
		if info.Openers == nil {
			p.env.openers(info)
		}
		if len(info.Openers) > 0 {
			return false, nil
		}
		err = driver.Claim(limit, i)
		if errors.Is(err, kernel.ErrBusy) {
			claimed = true
			return false, nil
		}
		return true, err
	})
	switch {
	case err == nil:
		return nil
	case limit.Err() != nil && seen != nil && (claimed || seen.Users() != ""): // also if the time was over in the middle of a look
		seen.Claimed = claimed
		return &supervise.BusyError{Info: *seen}
	case errors.Is(err, kernel.ErrNoDevice), errors.Is(err, syscall.ENXIO): // it has just gone
		return nil
	case errors.Is(err, kernel.ErrBusy):
		return err
	}
	return fmt.Errorf("whether it is in use cannot be found out: %w; --force detaches it all the same", err)
}

// keeperLimit bounds the wait for a process that runs, but does not listen yet: it has
// been started, or starts anew; and for one that is told to detach by force.
const keeperLimit = 10 * time.Second

// detachKept asks the process that keeps the device. It reports whether there is one
// that answers.
func (p *program) detachKept(ctx context.Context, driver kernel.Driver, v *view, force bool) (done bool, err error) {
	limit, cancel := context.WithTimeoutCause(ctx, p.env.keeper, errTime)
	defer cancel()
	err = poll(limit, func() (bool, error) {
		if !v.kept() {
			return true, nil
		}
		patient := ctx
		if force {
			patient = limit
		}
		again, err := p.askToDetach(patient, v, force)
		if !again {
			done = true
			return true, err
		}
		was := *v
		*v = *p.view(ctx, driver, kernel.Status{Index: v.index, Connected: v.connected}, p.states())
		return false, was.still(driver)
	})
	if err != nil && limit.Err() != nil && ctx.Err() == nil && (force || !done) {
		p.log.Warn("the process that keeps the device does not answer", "pid", v.process())
		return false, nil
	}
	return done, err
}

// askToDetach asks once. It reports whether to ask again.
func (p *program) askToDetach(ctx context.Context, v *view, force bool) (again bool, err error) {
	path := v.state.Control
	if path == "" {
		path = supervise.ControlPath(p.dir(), v.state.Process.PID)
	}
	c, err := supervise.Dial(ctx, path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer c.Close()
	err = c.Detach(ctx, v.index, force)
	var busy *supervise.BusyError
	switch {
	case errors.As(err, &busy) && busy.Forced:
		p.log.Warn(printable(busy.Error()))
		return false, nil
	case errors.Is(err, kernel.ErrNoDevice):
		return true, nil // it has not adopted it yet
	}
	return false, err
}

// isGone reports whether the kernel has let go of a device. One that is not attached is
// connected all the same, by its status, while somebody has it open, as udev has; so the
// system is asked as well.
func (p *program) isGone(ctx context.Context, driver kernel.Driver, i kernel.Index) bool {
	st, err := driver.Status(ctx, i)
	if errors.Is(err, kernel.ErrNoDevice) || err == nil && !st.Connected {
		return true
	}
	info, err := driver.Info(i)
	return errors.Is(err, kernel.ErrNoDevice) || err == nil && info.PID == 0
}

// awaitGone waits until nothing is left of an attachment. For one that was held before, and
// still is, nobody waits long: that is a warning for who has used force, and else an error.
func (p *program) awaitGone(ctx context.Context, driver kernel.Driver, i kernel.Index, held bool) error {
	if held {
		limit, cancel := context.WithTimeoutCause(ctx, openLimit, errTime)
		info, err := kernel.AwaitGone(limit, driver, i)
		cancel()
		if err == nil {
			return nil
		}
		if info != nil && info.PID != 0 {
			p.env.openers(info)
			busy := &supervise.BusyError{Info: *info, Forced: true}
			switch {
			case usersOf(info) == "":
			case !p.forced():
				return busy
			default:
				p.log.Warn(printable(busy.Error()))
				return nil
			}
		}
	}
	info, err := kernel.AwaitGone(ctx, driver, i)
	if err != nil && info != nil && info.PID == 0 {
		p.log.Warn(fmt.Sprintf("%s is detached, and still held: %s", i.Path(), usersOf(info)))
		return nil
	}
	return err
}

// resize lets a device grow.
func (p *program) resize(ctx context.Context) int {
	driver, err := p.anyDriver()
	if err != nil {
		return p.fail(ctx, err)
	}
	defer driver.Close()
	size, err := p.resizeOne(ctx, driver)
	if err != nil {
		return p.fail(ctx, fmt.Errorf("resize %s: %w", p.flags.Devices[0], err))
	}
	_, err = fmt.Fprintln(p.env.stdout, size)
	return p.tell(err)
}

func (p *program) resizeOne(ctx context.Context, driver kernel.Driver) (int64, error) {
	v, err := p.findWith(ctx, driver, p.flags.Devices[0])
	if err != nil {
		return 0, err
	}
	if !v.connected {
		return 0, kernel.ErrNotConnected
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer in %v", patience))
	defer cancel()
	if v.kept() {
		c, err := supervise.Dial(ctx, v.state.Control)
		if err != nil {
			return 0, fmt.Errorf("ask process %d, which keeps it: %w", v.state.Process.PID, err)
		}
		defer c.Close()
		return c.Resize(ctx, v.index, p.flags.NewSize)
	}
	switch {
	case p.flags.NewSize == 0:
		return 0, errors.New("no process keeps it, so nobody can ask the server: give the size, which must be that of the export")
	case v.info == nil:
		return 0, errors.New("its size is not known")
	case p.flags.NewSize < v.info.Size:
		return 0, fmt.Errorf("it has %d bytes: it does not shrink", v.info.Size)
	}
	return p.flags.NewSize, driver.Reconfigure(ctx, v.index, &kernel.Change{Size: p.flags.NewSize, Identifier: v.info.Identifier})
}

// upgrade asks processes to start anew.
func (p *program) upgrade(ctx context.Context) int {
	sockets, err := p.controls(ctx)
	if err != nil {
		return p.fail(ctx, err)
	}
	if len(sockets) == 0 {
		p.log.Info("no process keeps a device")
	}
	status := exitOK
	for _, path := range sockets {
		if err := p.upgradeOne(ctx, path); err != nil {
			status = p.fail(ctx, fmt.Errorf("upgrade the process at %s: %w", path, err))
		}
	}
	return status
}

// controls returns the sockets of the processes that are meant.
func (p *program) controls(ctx context.Context) (list []string, err error) {
	add := func(path string) {
		for _, have := range list {
			if have == path {
				return
			}
		}
		list = append(list, path)
	}
	if len(p.flags.Devices) == 0 {
		for _, s := range p.states() {
			if s.Control != "" && s.Phase != supervise.Released && s.Process.Running() {
				add(s.Control)
			}
		}
		return list, nil
	}
	for _, name := range p.flags.Devices {
		v, err := p.find(ctx, name)
		if err != nil {
			return nil, err
		}
		if !v.kept() {
			return nil, fmt.Errorf("%s: no process keeps it", v.index.Path())
		}
		add(v.state.Control)
	}
	return list, nil
}

// upgradeOne asks one process, and waits until the next program has taken over.
func (p *program) upgradeOne(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("it is not back after %v", patience))
	defer cancel()
	c, err := supervise.Dial(ctx, path)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Upgrade(ctx); err != nil {
		// A process that starts anew cannot answer: it hangs up. One that does not is
		// still there, and has said why.
		if _, there := c.List(ctx); there == nil {
			return err
		}
	}
	return poll(ctx, func() (bool, error) {
		next, err := supervise.Dial(ctx, path)
		if err != nil {
			return false, nil
		}
		defer next.Close()
		states, err := next.List(ctx)
		return err == nil && len(states) > 0, nil
	})
}
