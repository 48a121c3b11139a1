package daemon

import (
	"fmt"
	"os/user"
	"strconv"
)

// identity is what a process changes to. -1 leaves an id as it is.
type identity struct {
	uid, gid int
	groups   []int
}

// lookup finds a user and a group by name or number; "" leaves them as they are.
// Without a group the process keeps its own, as the reference does, but not its
// supplementary groups.
func lookup(userName, groupName string) (identity, error) {
	id := identity{uid: -1, gid: -1}
	if groupName != "" {
		g, err := user.LookupGroup(groupName)
		if err != nil {
			if n, bad := strconv.ParseUint(groupName, 10, 31); bad == nil {
				g, err = &user.Group{Gid: strconv.FormatUint(n, 10)}, nil
			}
		}
		if err != nil {
			return id, fmt.Errorf("find group %q: %w", groupName, err)
		}
		if id.gid, err = strconv.Atoi(g.Gid); err != nil {
			return id, fmt.Errorf("group %q has the id %q, which is not a number", groupName, g.Gid)
		}
	}
	if userName == "" {
		return id, nil
	}
	u, err := user.Lookup(userName)
	if err != nil {
		n, bad := strconv.ParseUint(userName, 10, 31)
		if bad != nil {
			return id, fmt.Errorf("find user %q: %w", userName, err)
		}
		id.uid = int(n) // it need not have a name
		return id, nil
	}
	if id.uid, err = strconv.Atoi(u.Uid); err != nil {
		return id, fmt.Errorf("user %q has the id %q, which is not a number", userName, u.Uid)
	}
	// A user without an entry in any group is in none but the primary one.
	list, _ := u.GroupIds()
	for _, g := range list {
		if n, err := strconv.Atoi(g); err == nil {
			id.groups = append(id.groups, n)
		}
	}
	return id, nil
}
