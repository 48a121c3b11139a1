package hangups

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair makes two connected sockets.
func pair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// Data is no hang-up, the end is one, and so is what somebody else does to the socket.
func TestPoller(t *testing.T) {
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 16)
	watch := func(name string, f *os.File) func() {
		stop, err := p.Watch(f, func() { told <- name })
		if err != nil {
			t.Fatal(err)
		}
		return stop
	}
	want := func(name string) {
		t.Helper()
		select {
		case got := <-told:
			if got != name {
				t.Fatalf("%s has hung up, want %s", got, name)
			}
		case <-time.After(time.Minute):
			t.Fatalf("nobody tells of %s", name)
		}
	}
	here, there := pair(t)
	quiet, silent := pair(t)
	other, _ := pair(t)
	stops := []func(){watch("here", here), watch("other", other)}
	watch("quiet", quiet)()
	if _, err := there.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	silent.Close() // nobody looks any more
	there.Close()
	want("here")
	if err := unix.Shutdown(int(other.Fd()), unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	want("other")
	for _, stop := range stops {
		stop()
	}
	p.Close()
	for len(told) > 0 {
		if name := <-told; name == "quiet" {
			t.Error("told of a socket that is not watched")
		}
	}
}
