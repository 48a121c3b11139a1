package socket

import (
	"net"
	"path/filepath"
	"testing"
)

// unixPair returns the two ends of a unix connection, the near one as Own returns it.
func unixPair(t *testing.T) (near *Unix, far net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	near, ok := Own(nc).(*Unix)
	if !ok {
		t.Fatalf("a connection of a unix socket was not made one that lingers, but %T", Own(nc))
	}
	t.Cleanup(func() { near.Close() })
	return near, far
}

// allow lets n look at a time, during a test.
func allow(t *testing.T, n int32) {
	old := spinners
	spinners = n
	t.Cleanup(func() { spinners = old })
}

// Who looks finds what is there, and the end of a connection. After it was in vain, it is
// left for a while, each time for longer.
func TestUnixLinger(t *testing.T) {
	allow(t, 1)
	near, far := unixPair(t)
	if near.Linger(false) {
		t.Error("there is nothing")
	}
	if near.spin != (habit{pause: 1, backoff: 1}) {
		t.Errorf("after it was in vain: %+v", near.spin)
	}
	far.Write([]byte("x"))
	if near.Linger(false) || near.spin.pause != 0 {
		t.Errorf("the pause is not kept: %+v", near.spin)
	}
	if near.Linger(true) {
		t.Error("it looks for one who sends many requests at once")
	}
	if !near.Linger(false) || near.spin.backoff != 0 {
		t.Errorf("what is there is not found: %+v", near.spin)
	}
	if n, err := near.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Errorf("to look has changed what is there: %d, %v", n, err)
	}
	far.Close()
	if !near.Linger(false) {
		t.Error("the end of a connection can be read")
	}
	if n := spinning.Load(); n != 0 {
		t.Errorf("%d are still looking", n)
	}
}

// No more look at a time than are allowed, and that counts as no try.
func TestSpinners(t *testing.T) {
	allow(t, 0)
	near, far := unixPair(t)
	far.Write([]byte("x"))
	if near.Linger(false) || near.spin != (habit{}) {
		t.Errorf("one too many has looked: %+v", near.spin)
	}
	spinners = 1
	if !near.Linger(false) {
		t.Error("the one that is allowed does not look")
	}
}

// A habit that is in vain is soon rare, and comes back with the first success.
func TestHabit(t *testing.T) {
	var h habit
	tries := 0
	for range 10 * longestPause {
		if h.due() {
			tries++
			h.note(false)
		}
	}
	if tries > 20 || h.backoff != longestPause {
		t.Errorf("%d tries in vain, then %+v", tries, h)
	}
	if h.note(true); h.backoff != 0 {
		t.Errorf("after a success: %+v", h)
	}
}

// What is closed is no Unix: its descriptor may be another's.
func TestOwnClosed(t *testing.T) {
	near, _ := unixPair(t)
	plain := near.UnixConn
	plain.Close()
	if got := Own(plain); got != net.Conn(plain) {
		t.Errorf("became %T", got)
	}
}

// TestFilesOfFirst: with the first connection the bells are hung up, whether it lingers or not.
func TestFilesOfFirst(t *testing.T) {
	old := lobby
	t.Cleanup(func() { lobby = old })
	lobby = new(lounge)
	opened := false
	lobby.open = func() error { opened = true; return nil }
	pair(t)
	if !opened {
		t.Error("they come later, and look like a leak")
	}
}
