//go:build !linux

package supervise

import (
	"errors"
	"os"
	"testing"
)

func copyFile(*os.File) (*os.File, error) { return nil, errors.ErrUnsupported }

func writable(*os.File) bool { return false }

func socketPair(t *testing.T) (a, b *os.File) {
	t.Fatal(errors.ErrUnsupported)
	return nil, nil
}

func withoutDescriptors(*testing.T, func()) {}
