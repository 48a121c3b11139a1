package supervise

import (
	"fmt"

	"nbd.example/nbd/kernel"
)

// limit lets the kernel ask for no more at a time than the server takes: what is longer
// would be answered with errors. The limit outlives the attachment, so it is lifted again
// when the device is detached. proto.md, "Block size constraints".
func (d *Device) limit(most uint32) error {
	driver := d.sup.cfg.Kernel
	info, err := driver.Info(d.index)
	if err != nil {
		return nil // without sysfs nothing is known, and nothing can be set
	}
	d.st.MaxRequest = info.MaxRequest
	if most == 0 || int64(most) >= info.MaxRequest {
		return nil
	}
	want := int64(most) - int64(most)%max(d.st.BlockSize, 1024)
	if err := driver.Tune(d.index, kernel.Tuning{MaxRequest: want}); err != nil {
		return fmt.Errorf("the server takes requests of at most %d bytes, the kernel makes some of %d, and cannot be told: %w", most, info.MaxRequest, err)
	}
	d.st.MaxRequest, d.st.MaxBefore = want, info.MaxRequest
	return nil
}

// unlimit undoes limit. It is no fault if it fails: the device's next user is slower then.
func (d *Device) unlimit() {
	if before := d.Status().MaxBefore; before > 0 {
		if err := d.sup.cfg.Kernel.Tune(d.index, kernel.Tuning{MaxRequest: before}); err != nil {
			d.log.Debug("the limit of requests stays", "err", err)
		}
	}
}
