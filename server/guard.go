package server

import (
	"fmt"
	"runtime/debug"

	"nbd.example/nbd/block"
)

// guarded calls f, which belongs to one export, and makes an error of a panic there: it
// must not end the others. Much of this is called where no connection is that could end
// instead.
func guarded(doing string, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic while %s: %v\n%s", doing, v, debug.Stack())
		}
	}()
	return f()
}

func closeGuarded(d *block.Device) error { return guarded("closing", d.Close) }
