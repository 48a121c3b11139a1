//go:build !linux

package supervise

import "os"

func lockByte(*os.File, int64) (bool, error) { return true, nil }

func restrict(int) {}
