//go:build unix

package daemon

import (
	"fmt"
	"os"
	"syscall"
)

// Drop changes the whole process, with all its threads, to a user and a group,
// given by name or number; "" leaves one as it is. It reports false if there was
// nothing to change, or if the process may not: one that was not started by root
// has no privileges to give up.
func Drop(userName, groupName string) (changed bool, err error) {
	if userName == "" && groupName == "" {
		return false, nil
	}
	if os.Geteuid() != 0 {
		return false, nil
	}
	id, err := lookup(userName, groupName)
	if err != nil {
		return false, err
	}
	if id.gid >= 0 && id.groups == nil {
		id.groups = []int{id.gid}
	}
	if err := syscall.Setgroups(id.groups); err != nil {
		return false, fmt.Errorf("set the supplementary groups of user %q: %w", userName, err)
	}
	if id.gid >= 0 {
		if err := syscall.Setgid(id.gid); err != nil {
			return false, fmt.Errorf("change to group %q: %w", groupName, err)
		}
	}
	if id.uid >= 0 {
		if err := syscall.Setuid(id.uid); err != nil {
			return false, fmt.Errorf("change to user %q: %w", userName, err)
		}
	}
	return true, nil
}
