package file

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/internal/fileid"
)

// sysfs is a folder that describes a disk.
type sysfs string

// sysfs returns the folder of the disk that a device is, or is a part of.
func (f *File) sysfs() sysfs {
	dir := f.ownSysfs()
	if dir.attribute("partition") != "" {
		return dir + "../"
	}
	return dir
}

// ownSysfs returns the folder of the disk or partition itself.
func (f *File) ownSysfs() sysfs {
	var st unix.Stat_t
	if unix.Fstat(int(f.fd), &st) != nil {
		return "/nonexistent/"
	}
	return sysfs(fmt.Sprintf("/sys/dev/block/%d:%d/", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))))
}

// writtenHere reports whether this process has the disk open for writing. It is for
// the message alone.
func (f *File) writtenHere() bool {
	info, err := f.config.Stat(f.config.Path)
	if err != nil {
		return false
	}
	disk, ok := info.Sys().(*syscall.Stat_t)
	open, err := os.ReadDir("/proc/self/fd")
	if !ok || err != nil {
		return false
	}
	for _, e := range open {
		var st unix.Stat_t
		fd, err := strconv.Atoi(e.Name())
		if err != nil || unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != disk.Rdev {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil && flags&unix.O_ACCMODE == unix.O_RDWR {
			return true
		}
	}
	return false
}

// attribute returns the text of an attribute, or "" if there is none.
func (s sysfs) attribute(name string) string {
	b, err := os.ReadFile(string(s) + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// instance names the file or the disk, not its path: what was replaced is another.
func (f *File) instance() string {
	name := fileid.Name(f.f)
	if f.device {
		name = f.diskName()
	}
	if name == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("%x", sum[:16])
}

// diskName uses the name that a disk carries itself. That of the device would be
// another disk's tomorrow. A disk without one (a loop device, a disk in memory)
// is the same until it is detached, at the latest when the machine restarts.
func (f *File) diskName() string {
	s := f.sysfs()
	part := " from " + f.ownSysfs().attribute("start")
	for _, a := range []string{"dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/cid"} {
		if id := s.attribute(a); id != "" {
			return a + " " + id + part
		}
	}
	var st unix.Stat_t
	if unix.Fstat(int(f.fd), &st) != nil {
		return ""
	}
	return fmt.Sprint("disk ", st.Rdev, " ", s.attribute("diskseq"), " since ", fileid.Boot())
}
