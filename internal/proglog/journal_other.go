//go:build !linux

package proglog

import "os"

// isJournal is false: only Linux has systemd.
func isJournal(*os.File, string) bool { return false }
