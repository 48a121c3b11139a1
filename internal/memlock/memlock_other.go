//go:build !linux

package memlock

import (
	"errors"
	"fmt"
)

// Lock fails: on this system no device depends on this process.
func Lock(Options) ([]Warning, error) {
	return nil, fmt.Errorf("memlock: only Linux can swap on NBD: %w", errors.ErrUnsupported)
}
