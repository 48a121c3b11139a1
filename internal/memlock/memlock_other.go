//go:build !linux

package memlock

// Lock fails: on this system no device depends on this process.
func Lock(Options) ([]Warning, error) { return nil, errNotLinux }
