package supervise

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/supervise/sock"
)

// copyFile duplicates a descriptor.
func copyFile(f *os.File) (copied *os.File, err error) {
	err = sock.With(f, func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			copied = os.NewFile(uintptr(n), f.Name())
		}
		return err
	})
	return copied, err
}

// writable reports whether a socket has room for what is to be sent.
func writable(f *os.File) (room bool) {
	sock.With(f, func(fd int) error {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(p, 0)
		room = n > 0
		return err
	})
	return room
}

func socketPair(t *testing.T) (a, b *os.File) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
}

// withoutDescriptors calls f while no file can be opened.
func withoutDescriptors(t *testing.T, f func()) {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	none := now
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &now)
	f()
}
