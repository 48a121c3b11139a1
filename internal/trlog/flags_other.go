//go:build !windows

package trlog

import "os"

// appending lets somebody else make the file shorter while it is written, as some
// programs rotate logs.
const appending = os.O_APPEND
