package tree

import (
	"io"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How files may be read without waiting.
const (
	nowUnknown = iota // no file has been asked yet
	nowNever          // it cannot be told what waits: the files are behind a network, say
	nowCached         // RWF_NOWAIT reads from the page cache or not at all
	nowAlways         // the files live in memory, in a file system that waits for nothing but swap
)

// slowWrite is how long a write may take before those that follow are left to others for
// slowPause: a journal that is full, or throttling.
const (
	slowWrite = 2 * time.Millisecond
	slowPause = 100 * time.Millisecond
)

// resolveCached is RESOLVE_CACHED of openat2, from Linux 5.12 on: only names that are in
// memory are found.
const resolveCached = 0x20

// now is what is known of how to answer without waiting.
type now struct {
	read      atomic.Int32
	noOpen    atomic.Bool  // the system has no RESOLVE_CACHED
	slowUntil atomic.Int64 // writes may wait until then, in nanoseconds since start
}

var start = time.Now()

// findNow finds out what the folder tells. The rest a file tells.
func (s *system) findNow() {
	if inMemory(int(s.root.Fd())) {
		s.now.read.Store(nowAlways)
	}
}

// inMemory reports whether a file or folder lives in memory.
func inMemory(fd int) bool {
	var sys unix.Statfs_t
	if unix.Fstatfs(fd, &sys) != nil {
		return false
	}
	m := uint32(sys.Type)
	return m == unix.TMPFS_MAGIC || m == unix.RAMFS_MAGIC
}

// inTree returns the name of a file in the tree relative to its folder. So it is found
// faster, and os.File, which is made for more than files, has no part in it.
func (s *system) inTree(name string) string {
	return strings.TrimLeft(name[len(s.config.Path):], "/")
}

// OpenFile implements FS.
func (s *system) OpenFile(name string, flag int) (File, error) {
	for {
		fd, err := unix.Openat(int(s.root.Fd()), s.inTree(name), flag|unix.O_CLOEXEC, 0o600)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		f := &sysFile{fd: fd, sys: s}
		switch s.now.read.Load() {
		case nowUnknown:
			f.ask()
		case nowAlways: // but a folder may be a mount point, or a link that leads elsewhere
			f.memory = inMemory(fd)
		}
		return f, nil
	}
}

// OpenNow implements FS. What is on another mount than the folder of the tree may wait for
// a network, and so may somebody who has a lease on a file.
func (s *system) OpenNow(name string, flag int) File {
	how := unix.OpenHow{Flags: uint64(flag | unix.O_CLOEXEC | unix.O_LARGEFILE | unix.O_NONBLOCK), Resolve: unix.RESOLVE_NO_XDEV}
	read := s.now.read.Load()
	switch read {
	case nowUnknown, nowNever:
		return nil
	case nowCached:
		how.Resolve |= resolveCached
	}
	var path [128]byte
	if s.now.noOpen.Load() || copy(path[:len(path)-1], s.inTree(name)) == len(path)-1 {
		return nil
	}
	// What does not wait need not be told to the scheduler.
	fd, _, err := unix.RawSyscall6(unix.SYS_OPENAT2, s.root.Fd(), uintptr(unsafe.Pointer(&path)), uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0)
	switch err {
	case 0:
		return &sysFile{fd: int(fd), sys: s, memory: read == nowAlways}
	case unix.ENOSYS, unix.EINVAL, unix.EPERM:
		s.now.noOpen.Store(true)
	}
	return nil
}

// sysFile is a file of the system.
type sysFile struct {
	fd     int
	sys    *system
	memory bool // it lives there, as the tree does
}

// now returns how the file may be read without waiting.
func (f *sysFile) now() int32 {
	how := f.sys.now.read.Load()
	if how == nowAlways && !f.memory {
		return nowNever
	}
	return how
}

// ask finds out by the first file that is opened how all can be read.
func (f *sysFile) ask() {
	var p [1]byte
	how := int32(nowNever)
	switch _, err := f.nowait(p[:], 0, unix.RWF_NOWAIT); err {
	case 0, unix.EAGAIN:
		how = nowCached
	}
	f.sys.now.read.Store(how)
}

// nowait reads what is in memory. The upper half of an offset in a file is 0.
func (f *sysFile) nowait(p []byte, off int64, flags uintptr) (int, unix.Errno) {
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	n, _, err := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(f.fd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, flags)
	return int(n), err
}

// ReadNow implements File.
func (f *sysFile) ReadNow(p []byte, off int64) bool {
	switch f.now() {
	case nowCached: // less than all may be the end, or what is in memory
		n, err := f.nowait(p, off, unix.RWF_NOWAIT)
		return err == 0 && n == len(p)
	case nowAlways:
		n, err := f.nowait(p, off, 0)
		if err == 0 {
			clear(p[n:])
		}
		return err == 0
	}
	return false
}

// WriteNow implements File. The scheduler is told of all writes: also those to memory wait
// when it is short, and that must not hold up other goroutines.
func (f *sysFile) WriteNow(p []byte, off int64) bool {
	s := &f.sys.now
	switch f.now() {
	case nowAlways:
		n, err := unix.Pwrite(f.fd, p, off)
		return err == nil && n == len(p)
	case nowCached:
		begin := time.Since(start)
		if int64(begin) < s.slowUntil.Load() {
			return false
		}
		n, err := unix.Pwrite(f.fd, p, off)
		if end := time.Since(start); end-begin > slowWrite {
			s.slowUntil.Store(int64(end + slowPause))
		}
		return err == nil && n == len(p)
	}
	return false
}

// ReadAt implements File.
func (f *sysFile) ReadAt(p []byte, off int64) (int, error) {
	return whole("read", p, off, func(p []byte, off int64) (int, error) { return unix.Pread(f.fd, p, off) })
}

// WriteAt implements File.
func (f *sysFile) WriteAt(p []byte, off int64) (int, error) {
	return whole("write", p, off, func(p []byte, off int64) (int, error) { return unix.Pwrite(f.fd, p, off) })
}

// whole calls do until all of p is done.
func whole(op string, p []byte, off int64, do func([]byte, int64) (int, error)) (done int, err error) {
	for done < len(p) {
		n, err := do(p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, os.NewSyscallError(op, err)
		case n == 0:
			return done, io.EOF
		default:
			done += n
		}
	}
	return done, nil
}

// Size implements File.
func (f *sysFile) Size() (int64, error) {
	var st unix.Stat_t
	err := unix.Fstat(f.fd, &st)
	return st.Size, os.NewSyscallError("fstat", err)
}

// Truncate implements File.
func (f *sysFile) Truncate(size int64) error {
	return os.NewSyscallError("ftruncate", unix.Ftruncate(f.fd, size))
}

// Sync implements File.
func (f *sysFile) Sync() error {
	err := unix.Fsync(f.fd)
	for err == unix.EINTR {
		err = unix.Fsync(f.fd)
	}
	return os.NewSyscallError("fsync", err)
}

// Close implements File.
func (f *sysFile) Close() error {
	if f.now() != nowAlways {
		return os.NewSyscallError("close", unix.Close(f.fd))
	}
	if _, _, err := unix.RawSyscall(unix.SYS_CLOSE, uintptr(f.fd), 0, 0); err != 0 {
		return os.NewSyscallError("close", err)
	}
	return nil
}

// mostOpen returns how many files the process may open.
func mostOpen() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 0
	}
	return int(min(l.Cur, 1<<20))
}
