// Package pass has the sockets of kernel devices pass from one process to the next: through
// exec, or through the file descriptor store of systemd.
package pass

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"nbd.example/nbd/kernel"
)

// Socket is a kernel device's socket on its way from one process to the next. Its name
// says which one it is: "nbd0-4711" for the socket with the inode 4711 of nbd0.
type Socket struct {
	Name string
	File *os.File
}

// Name names a socket.
func Name(i kernel.Index, inode uint64) string {
	return Prefix(i) + strconv.FormatUint(inode, 10)
}

// Prefix is what the names of a device's sockets begin with.
func Prefix(i kernel.Index) string { return i.Name() + "-" }

// Device returns the device of a name that Name has made.
func Device(name string) kernel.Index {
	device, _, _ := strings.Cut(name, "-")
	i, _ := kernel.ParseIndex(device)
	return i
}

// isName reports whether Name makes such names.
func isName(name string) bool {
	device, number, ok := strings.Cut(name, "-")
	i, err := kernel.ParseIndex(device)
	if !ok || err != nil {
		return false
	}
	n, err := strconv.ParseUint(number, 10, 64)
	return err == nil && Name(i, n) == name
}

// Variable carries descriptors from Exec to Inherit: "nbd0-4711=7,…".
const Variable = "NBD_SUPERVISE_SOCKETS"

// inheritable is a descriptor that is said to be a socket.
type inheritable struct {
	name string
	fd   int
}

// maxInherited bounds how many sockets are looked for.
const maxInherited = 1 << 16

// parseSockets reads Variable.
func parseSockets(text string) ([]inheritable, error) {
	var list []inheritable
	for text != "" {
		var word string
		word, text, _ = strings.Cut(text, ",")
		name, number, ok := strings.Cut(word, "=")
		fd, err := strconv.ParseUint(number, 10, 31)
		if !ok || err != nil || !isName(name) || fd < 3 || len(list) == maxInherited {
			return nil, fmt.Errorf("%.100q is not what a supervisor passes on", word)
		}
		list = append(list, inheritable{name, int(fd)})
	}
	return list, nil
}

// parseListen reads what systemd passes: the descriptors from 3 on that have the names
// of sockets. See sd_listen_fds_with_names(3).
func parseListen(pid int, listenPID, count, names string) []inheritable {
	p, err := strconv.Atoi(listenPID)
	if err != nil || p != pid {
		return nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxInherited {
		return nil
	}
	var list []inheritable
	for i, name := range strings.Split(names, ":") {
		if i < n && isName(name) {
			list = append(list, inheritable{name, 3 + i})
		}
	}
	return list
}

// takenName stands in LISTEN_FDNAMES for a socket that was taken.
const takenName = "taken"

// strikeOut replaces the names of sockets in LISTEN_FDNAMES, so that each keeps its place.
func strikeOut(names string) string {
	list := strings.Split(names, ":")
	for i, name := range list {
		if isName(name) {
			list[i] = takenName
		}
	}
	return strings.Join(list, ":")
}

// distinct leaves out descriptors that were named before.
func distinct(list []inheritable) []inheritable {
	known := map[int]bool{}
	return slices.DeleteFunc(list, func(s inheritable) bool {
		again := known[s.fd]
		known[s.fd] = true
		return again
	})
}

// Inherit returns the sockets that this process got when it was started: by
// [Exec], or from the file descriptor store of systemd. It must be called
// at most once, and before sockets for other purposes are taken from LISTEN_FDS: those
// are left alone. It removes the variable of Exec from the environment, and the names
// of what it takes from LISTEN_FDNAMES: a program that replaces this one has the same
// process number, and would believe them once more, when the numbers of the descriptors
// may long belong to something else.
func Inherit() []Socket {
	list, _ := parseSockets(os.Getenv(Variable)) // whoever wrote something else passed nothing
	os.Unsetenv(Variable)
	names := os.Getenv("LISTEN_FDNAMES")
	listed := parseListen(os.Getpid(), os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), names)
	if len(listed) > 0 {
		os.Setenv("LISTEN_FDNAMES", strikeOut(names))
	}
	return inherit(distinct(append(list, listed...)))
}
