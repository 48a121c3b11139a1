package supervise

import (
	"context"

	"nbd.example/nbd/kernel"
)

// limit lets the kernel ask for no more at a time than the server takes. The limit outlives
// the attachment, so it is lifted again when the device is detached.
func (d *Device) limit(ctx context.Context, most uint32) error {
	now, before, err := kernel.SuitRequests(ctx, d.sup.cfg.Kernel, d.index, most)
	d.update(func(st *State) { st.MaxRequest, st.MaxBefore = now, before })
	return err
}

// unlimit undoes limit. It is no fault if it fails: the device's next user is slower then.
func (d *Device) unlimit(ctx context.Context) {
	before := d.Status().MaxBefore
	if before == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.sup.times.force)
	defer cancel()
	if err := d.sup.cfg.Kernel.LimitRequests(ctx, d.index, before); err != nil {
		d.log.Debug("the limit of requests stays", "err", err)
	}
}
