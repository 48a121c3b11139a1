package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise"
)

// view is what kernel and state files together say of one device.
type view struct {
	index     kernel.Index
	connected bool             // attached
	info      *kernel.Info     // nil if the system does not tell
	state     *supervise.State // nil if no supervisor has it, or had it
}

// kept reports whether a process keeps the device.
func (v *view) kept() bool {
	return v.state != nil && v.state.Phase != supervise.Released && v.state.Phase != supervise.Gone && v.state.Process.Running()
}

// phase is the state of the device in a word.
func (v *view) phase() supervise.Phase {
	switch {
	case !v.connected && v.state != nil && v.kept() && v.state.Phase == supervise.Attaching:
		return supervise.Attaching
	case !v.connected:
		return "detached"
	case v.state == nil:
		return supervise.Unkept
	case !v.kept():
		return "orphaned" // its process has died
	}
	return v.state.Phase
}

// identifier names what is attached.
func (v *view) identifier() string {
	switch {
	case v.state != nil && v.connected:
		return v.state.Identifier
	case v.info != nil:
		return v.info.Identifier
	}
	return ""
}

// process returns the number of the process that keeps, or has attached, the device.
func (v *view) process() int {
	switch {
	case v.kept():
		return v.state.Process.PID
	case v.info != nil:
		return v.info.PID
	}
	return 0
}

// views returns all devices that exist, by their index.
func (p *program) views(ctx context.Context, driver kernel.Driver) ([]*view, error) {
	all, err := driver.StatusAll(ctx)
	if err != nil {
		return nil, err
	}
	states := p.states()
	var list []*view
	for _, st := range all {
		list = append(list, p.view(ctx, driver, st, states))
	}
	slices.SortFunc(list, func(a, b *view) int { return int(a.index) - int(b.index) })
	return list, nil
}

// states reads the state files. Those that cannot be read are logged.
func (p *program) states() []supervise.State {
	states, err := supervise.States(p.dir())
	if err != nil {
		for _, line := range strings.Split(err.Error(), "\n") {
			p.log.Warn("state of devices: " + line)
		}
	}
	return states
}

func (p *program) view(ctx context.Context, driver kernel.Driver, st kernel.Status, states []supervise.State) *view {
	v := &view{index: st.Index, connected: st.Connected}
	info, err := driver.Info(st.Index)
	if err != nil {
		p.log.Debug("no information on a device", "device", st.Index.Path(), "error", err)
	} else {
		v.info = info
		// One that is only open, as udev has it, is connected all the same, by its status.
		v.connected = v.connected && info.PID != 0
	}
	for i := range states {
		s := &states[i]
		if s.Index != st.Index || s.Phase == supervise.Gone {
			continue
		}
		// A file that outlived its device must not describe the next one.
		if v.connected && v.info != nil && v.info.PID != 0 && s.Replaced(v.info) {
			continue
		}
		v.state = s
	}
	if v.connected && v.info != nil && !v.kept() && kernel.Left(ctx, driver, v.index, v.info.Identifier) {
		v.connected = false
	}
	return v
}

// errAmbiguous says that an identifier names several devices.
var errAmbiguous = errors.New("several devices")

// find looks for a device by its name, a link to it, or its identifier.
func (p *program) find(ctx context.Context, name string) (*view, error) {
	driver, err := p.anyDriver()
	if err != nil {
		return nil, err
	}
	defer driver.Close()
	return p.findWith(ctx, driver, name)
}

func (p *program) findWith(ctx context.Context, driver kernel.Driver, name string) (*view, error) {
	if i, err := p.index(name); err == nil {
		st, err := driver.Status(ctx, i)
		if err != nil {
			return nil, err
		}
		return p.view(ctx, driver, st, p.states()), nil
	} else if strings.HasPrefix(name, "/") {
		return nil, err
	}
	all, err := p.views(ctx, driver)
	if err != nil {
		return nil, err
	}
	var found *view
	for _, v := range all {
		if v.connected && v.identifier() == name {
			if found != nil {
				return nil, fmt.Errorf("%q: %w have this identifier: %s and %s", name, errAmbiguous, found.index.Path(), v.index.Path())
			}
			found = v
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%q is neither the name of an NBD device, which is like /dev/nbd0, nor the identifier of one that is attached: %w", name, kernel.ErrNoDevice)
	}
	return found, nil
}
