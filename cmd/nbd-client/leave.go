package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"nbd.example/nbd/supervise"
)

// leaving is the end of a process that was told to end, and waits until nobody uses the
// devices that end with it.
type leaving struct {
	why     string
	devices []*supervise.Device
	cancel  context.CancelFunc
	done    chan struct{} // closed when all are detached
}

// bound returns the devices whose connections end with this process: those of the old
// interface, those behind a relay, and what the process serves itself.
func (k *keeper) bound() []*supervise.Device {
	return slices.DeleteFunc(k.s.Devices(), func(d *supervise.Device) bool {
		st := d.Status()
		return k.driver.Can().Adopt && !st.Tied()
	})
}

// terminate obeys SIGTERM. Devices that can do without this process stay attached, and wait
// for the next one. The others are detached; but below a file system that is mounted nothing
// may die, so as long as one of them is in use the process stays. Whoever cannot wait sends
// the signal again; and service managers send SIGKILL after a while.
//
// A service is started anew, mostly at once, and the next one connects again what this one
// had: so it waits only if none will come, or could do that.
func (k *keeper) terminate(ctx context.Context, sig os.Signal) (done bool, status int) {
	if k.leaving != nil {
		k.close(true, "a second signal: "+sig.String())
		return true, exitError
	}
	stopping := k.p.env.stopping(ctx)
	if stopping {
		k.detachUnused(ctx)
	}
	bound := k.bound()
	if len(bound) == 0 || k.service && k.driver.Can().Adopt && !stopping {
		return true, k.close(true, sig.String())
	}
	k.leave(ctx, bound, sig.String())
	return false, 0
}

// leave begins to detach devices, each as soon as nobody uses it.
func (k *keeper) leave(ctx context.Context, devices []*supervise.Device, why string) {
	ctx, cancel := context.WithCancel(ctx)
	l := &leaving{why: why, devices: devices, cancel: cancel, done: make(chan struct{})}
	k.leaving = l
	var wg sync.WaitGroup
	for _, d := range devices {
		wg.Go(func() { k.detachLater(ctx, d) })
	}
	go func() {
		defer close(l.done)
		wg.Wait()
	}()
}

// left is closed when nothing is left that the process waits for before it ends; nil while
// it is not about to end.
func (k *keeper) left() <-chan struct{} {
	if k.leaving == nil {
		return nil
	}
	return k.leaving.done
}

// stopLeaving gives up to wait for who uses devices.
func (k *keeper) stopLeaving() {
	if k.leaving != nil {
		k.leaving.cancel()
		<-k.leaving.done
	}
}

// detachLater detaches a device as soon as nobody uses it.
func (k *keeper) detachLater(ctx context.Context, d *supervise.Device) {
	for said := false; ; said = true {
		limit, cancel := context.WithTimeout(ctx, closeLimit)
		err := d.Detach(limit, false)
		cancel()
		if isDetached(err) || ctx.Err() != nil {
			return
		}
		if !said {
			k.p.log.Warn(printable(err.Error()) + "; its connections end with this process, which stays until nobody uses it any more: unmount it, or send a second SIGTERM, and whoever uses it hangs, or gets errors")
		}
		select {
		case <-time.After(k.p.env.look): // the system tells nobody who closes a device
		case <-d.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// sayWaiting says which devices stay attached and have no connection, once this process has
// ended.
func (k *keeper) sayWaiting() {
	if !k.driver.Can().Adopt {
		return // they are gone
	}
	for _, d := range k.s.Devices() {
		if st := d.Status(); st.Waits(false) {
			k.p.log.Warn(fmt.Sprintf("%s stays attached without a connection: nothing that is asked of it is answered until it is attached again, or detached by force", st.Device), "identifier", st.Identifier)
		}
	}
}

// text is what the service manager shows meanwhile.
func (l *leaving) text() string {
	var list []string
	for _, d := range l.devices {
		if d.Err() == nil {
			list = append(list, d.Index().Path())
		}
	}
	return "ends when nobody uses " + strings.Join(list, ", ") + " any more"
}
