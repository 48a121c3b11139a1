package kernel

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// LoadModule loads the NBD driver if the kernel does not have it, by modprobe, which
// needs root. The error says what to do.
func LoadModule(ctx context.Context) error { return System{}.load(ctx, "modprobe", "nbd") }

// load runs a command that should load the driver, unless it is there.
func (s System) load(ctx context.Context, command ...string) error {
	if s.Loaded() {
		return nil
	}
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	if s.Loaded() {
		return nil // modprobe may also complain of something else
	}
	said := strings.TrimSpace(string(out))
	if len(said) > 500 {
		said = said[:500]
	}
	if err == nil {
		err = fmt.Errorf("%q has loaded no driver", strings.Join(command, " "))
	}
	if said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return fmt.Errorf("%w, as root by \"modprobe nbd\"; the kernel must have been built with CONFIG_BLK_DEV_NBD: %w", ErrNoModule, err)
}
