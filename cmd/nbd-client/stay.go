package main

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"nbd.example/nbd/kernel"
)

const (
	// stayLook is how often a process looks at a device that it does not keep.
	stayLook = 2 * time.Second
	// stayMisses is how often, one time after the other, it may find that not all is well:
	// the process that keeps the device may be starting anew.
	stayMisses = 10
)

// stay is for a process that does not keep its device, and has a service manager: it stays
// for as long as the device is attached, so that the service is what the device is. look
// says what the service manager shows, and whether all is well; if it is not for a while,
// the process fails.
func (p *program) stay(ctx context.Context, driver kernel.Driver, i kernel.Index, n *notifier, signals <-chan os.Signal, look func() (text string, ok bool)) int {
	text, _ := look()
	n.ready(text)
	t := time.NewTicker(p.env.look)
	defer t.Stop()
	for missed := 0; missed < stayMisses; {
		n.status(text)
		if info, err := driver.Info(i); errors.Is(err, kernel.ErrNoDevice) || err == nil && info.PID == 0 {
			return exitOK
		}
		select {
		case <-ctx.Done():
			return exitOK
		case sig := <-signals:
			if sig == os.Interrupt || sig == syscall.SIGTERM {
				return exitOK
			}
		case <-n.dog():
			n.lives()
		case <-t.C:
			var ok bool
			if text, ok = look(); ok {
				missed = 0
			} else {
				missed++
			}
		}
	}
	p.log.Error(text)
	return exitError
}
