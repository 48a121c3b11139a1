package proglog

import (
	"log/slog"
	"os"
)

// kernelSink writes to the kernel's log: in an initramfs there is no other. It is nil if
// that may not be written to.
func kernelSink() func(slog.Level, []byte) {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return nil
	}
	return journal(f)
}
