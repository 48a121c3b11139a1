package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise"
)

// wait waits until a device can be used, or is gone.
func (p *program) wait(ctx context.Context) int {
	name := p.flags.Devices[0]
	driver, err := p.anyDriver()
	if errors.Is(err, kernel.ErrNoModule) && p.flags.Until == "gone" {
		return exitOK
	}
	if err != nil {
		return p.fail(ctx, err)
	}
	defer driver.Close()
	if d := p.flags.Timeout; d != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, max(d, 0), errTime)
		defer cancel()
	}
	last := ""
	err = poll(ctx, func() (bool, error) {
		v, err := p.findWith(ctx, driver, name)
		if errors.Is(err, kernel.ErrNoDevice) {
			last = "there is no such device"
			return p.flags.Until == "gone", nil
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause // in the middle of a question
			}
			return false, err
		}
		last = string(v.phase())
		if p.flags.Until == "gone" {
			return !v.connected && !v.kept() && (v.info == nil || v.info.Gone()), nil
		}
		return usable(v), nil
	})
	if errors.Is(err, errTime) {
		p.log.Error(fmt.Sprintf("%s is not %s after %v: %s", name, p.flags.Until, max(p.flags.Timeout, 0), last))
		return exitTimeout
	}
	if err != nil {
		return p.fail(ctx, err)
	}
	return exitOK
}

var errTime = errors.New("the time is over")

// usable reports whether requests to a device are answered.
func usable(v *view) bool {
	if !v.connected || v.info == nil || !v.info.Ready() {
		return false
	}
	return !v.waits() && (!v.kept() || v.state.Phase == supervise.Attached || v.state.Phase == supervise.Degraded)
}

// pollEvery is how often the kernel is asked for what it tells nobody.
const pollEvery = 20 * time.Millisecond

// poll asks until so is true, or fails, or ctx ends.
func poll(ctx context.Context, so func() (bool, error)) error {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		if done, err := so(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}
