//go:build !linux

package tree

import (
	"errors"
	"os"
)

// syncsAll says that there is syncAll.
const syncsAll = false

func syncAll(*os.File) error { return errors.ErrUnsupported }

// instance says that the contents are new.
func instance(*os.File, int64) string { return "" }
