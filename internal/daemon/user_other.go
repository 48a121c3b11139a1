//go:build !unix

package daemon

// Drop changes nothing on this system, and reports that.
func Drop(userName, groupName string) (changed bool, err error) { return false, nil }
