package tree

import (
	"errors"
	"maps"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// syncsAll says that there is syncAll.
const syncsAll = true

// mounts are the file systems that a tree lies on beside that of its folder: folders in it may
// be mount points, or links that lead elsewhere. The zero value is ready.
type mounts struct {
	mu    sync.Mutex
	known map[uint64]*os.File // a folder of each, by its device
}

// note takes note of the file system of a folder, before anything in it is changed.
func (s *system) note(folder *os.File) error {
	if s.config.ReadOnly || s.root == nil {
		return nil
	}
	var at, root unix.Stat_t
	if err := errors.Join(unix.Fstat(int(folder.Fd()), &at), unix.Fstat(int(s.root.Fd()), &root)); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	device := uint64(at.Dev)
	m := &s.mounts
	m.mu.Lock()
	defer m.mu.Unlock()
	if at.Dev == root.Dev || m.known[device] != nil {
		return nil
	}
	fd, err := unix.FcntlInt(folder.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	if m.known == nil {
		m.known = map[uint64]*os.File{}
	}
	m.known[device] = os.NewFile(uintptr(fd), folder.Name())
	return nil
}

// syncAll makes stable all file systems that the tree lies on. It tells of everything that
// could not be written back since they were opened.
func (s *system) syncAll() error {
	s.mounts.mu.Lock()
	list := append(slices.Collect(maps.Values(s.mounts.known)), s.root)
	s.mounts.mu.Unlock()
	var errs []error
	for _, f := range list {
		errs = append(errs, os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd()))))
	}
	return errors.Join(errs...)
}

// close closes what note has opened.
func (m *mounts) close() (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.known {
		err = errors.Join(err, f.Close())
	}
	m.known = nil
	return err
}
