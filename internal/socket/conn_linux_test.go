package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"
)

// pair returns two ends of a connection of TCP, of which the first is a Conn.
func pair(t testing.TB) (*Conn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, ok := Own(near).(*Conn)
	if !ok {
		t.Fatal("the connection was not taken")
	}
	if near.Close() == nil {
		t.Error("package net still has it")
	}
	t.Cleanup(func() { c.Close(); far.Close() })
	return c, far.(*net.TCPConn)
}

// TestConn is what every net.Conn must stand.
func TestConn(t *testing.T) {
	for name, swap := range map[string]bool{"near": false, "far": true} {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				c, far := pair(t)
				stop := func() { c.Close(); far.Close() }
				if swap {
					return far, c, stop, nil
				}
				return c, far, stop, nil
			})
		})
	}
}

// Reading and writing wait side by side: one event is for both, or for one.
func TestBothSides(t *testing.T) {
	c, far := pair(t)
	const size = 64 << 20 // more than the buffers hold
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := c.Write(make([]byte, size)); n != size || err != nil {
			t.Errorf("wrote %d: %v", n, err)
		}
	})
	wg.Go(func() {
		got, err := io.ReadAll(c)
		if len(got) != size || err != nil {
			t.Errorf("read %d: %v", len(got), err)
		}
	})
	wg.Go(func() {
		if _, err := far.Write(make([]byte, size)); err != nil {
			t.Error(err)
		}
		far.CloseWrite()
	})
	wg.Go(func() {
		if n, err := io.Copy(io.Discard, io.LimitReader(far, size)); n != size || err != nil {
			t.Errorf("the peer read %d: %v", n, err)
		}
	})
	wg.Wait()
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	if n, err := far.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the peer read %d, %v", n, err)
	}
}

// The descriptor is closed when the last one who uses it is done, once, and not before.
func TestDescriptor(t *testing.T) {
	c, far := pair(t)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	within, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		done <- raw.Control(func(uintptr) { close(within); <-leave })
	}()
	<-within
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	for name, err := range map[string]error{
		"control": raw.Control(func(uintptr) { t.Error("called") }),
		"read":    raw.Read(func(uintptr) bool { t.Error("called"); return true }),
		"write":   raw.Write(func(uintptr) bool { t.Error("called"); return true }),
		"limit":   c.SetDeadline(time.Now()),
		"half":    c.CloseWrite(),
		"option":  c.SetNoDelay(true),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s on a closed one: %v", name, err)
		}
	}
	far.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("while it is in use, the peer sees %v", err)
	}
	far.SetReadDeadline(time.Time{})
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after that, the peer sees %v", err)
	}
}

// A RawConn's functions are called until they are content, and with the deadline they end.
func TestRaw(t *testing.T) {
	c, far := pair(t)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	err = raw.Read(func(fd uintptr) bool {
		if calls++; calls == 1 {
			far.Write([]byte("x"))
			return false
		}
		return true
	})
	if err != nil || calls != 2 {
		t.Errorf("%d calls: %v", calls, err)
	}
	c.Read(make([]byte, 1))
	waits := make(chan struct{})
	go func() {
		<-waits
		c.SetReadDeadline(time.Unix(1, 0))
	}()
	calls = 0
	err = raw.Read(func(fd uintptr) bool {
		if calls++; calls == 1 {
			close(waits)
		}
		return false
	})
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("at the deadline: %v", err)
	}
	calls = 0
	if err := raw.Read(func(uintptr) bool { calls++; return true }); !errors.Is(err, os.ErrDeadlineExceeded) || calls != 0 {
		t.Errorf("after the deadline: %d calls, %v", calls, err)
	}
}

// Who lingers gets what comes, is sent away if nothing does, and then pauses.
func TestLinger(t *testing.T) {
	c, far := pair(t)
	go far.Write([]byte("x"))
	for !c.Linger(false) {
	}
	if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
	c.pause = 0
	if c.Linger(false) {
		t.Error("there is nothing")
	}
	if c.backoff != 1 || c.pause != 1 {
		t.Errorf("after it was in vain, pause %d, backoff %d", c.pause, c.backoff)
	}
	far.Close()
	c.pause = 0
	if !c.Linger(false) {
		t.Error("the end of a connection can be read")
	}
	if taken := lobby.taken.Load(); taken != 0 {
		t.Errorf("seats %b are taken", taken)
	}
}

// All seats may be taken: then nobody waits for one.
func TestSeats(t *testing.T) {
	if err := lobby.open(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for lobby.sit() >= 0 {
		n++
	}
	c, _ := pair(t)
	if n != seats || c.Linger(false) {
		t.Errorf("%d seats", n)
	}
	for i := range n {
		lobby.rise(i)
	}
	if lobby.taken.Load() != 0 {
		t.Error("they were not given back")
	}
}

// hung returns a lounge that nobody has used.
func hung(t *testing.T) *lounge {
	t.Helper()
	l := new(lounge)
	if err := l.hang(); err != nil {
		t.Fatal(err)
	}
	return l
}

// Whoever sits finds the ticker at work: it starts when a seat is taken, not before, and does not
// stop while one is.
func TestTicker(t *testing.T) {
	l := hung(t)
	l.taken.Store(1<<seats - 1)
	if l.sit() >= 0 || l.runs.Load() {
		t.Error("it was started for nobody")
	}
	l.rise(3)
	if l.sit() != 3 || !l.runs.Load() {
		t.Error("it does not run for one who sits")
	}
	l.taken.Store(0)
	for l.runs.Load() { // ends when nobody comes
		runtime.Gosched()
	}
	l = hung(t)
	l.runs.Store(true)
	l.taken.Store(1)
	l.stop()
	if !l.runs.Load() {
		t.Error("it has stopped while somebody sits")
	}
	l.taken.Store(0)
	l = hung(t)
	if p := (patience{}); l.crowded(&p) || !l.runs.Load() {
		t.Error("it does not run for one who counts")
	}
}

// The bell rings for who is late, and nobody else; and what was meant for another is passed over.
func TestBells(t *testing.T) {
	l := hung(t)
	rings := func(seat int) bool {
		fds := []unix.PollFd{{Fd: int32(l.bells[seat]), Events: unix.POLLIN}}
		n, _ := unix.Poll(fds, 0)
		return n == 1
	}
	l.runs.Store(true) // not by itself
	for range 4 {
		l.sit()
	}
	l.rise(3)
	l.tick.Store(2)
	l.since[1].Store(1)
	l.ring()
	for seat, want := range []bool{true, false, true, false} {
		if rings(seat) != want {
			t.Errorf("the bell of seat %d rings: %t", seat, !want)
		}
	}
	c, far := pair(t)
	if l.wait(0, c.fd) || rings(0) {
		t.Error("who was late stays, or the bell rings on")
	}
	l.rise(2)
	if seat := l.sit(); seat != 2 {
		t.Fatalf("seat %d", seat)
	}
	came := make(chan bool)
	go func() { came <- l.wait(2, c.fd) }()
	for rings(2) {
		runtime.Gosched()
	}
	far.Write([]byte("x"))
	if !<-came {
		t.Error("sent away by a bell that rang for another")
	}
}

// Nothing is left of the deadlines of a connection that is closed.
func TestCloseTimers(t *testing.T) {
	c, _ := pair(t)
	c.SetDeadline(time.Now().Add(time.Hour))
	c.Close()
	if c.in.timer.Stop() || c.out.timer.Stop() {
		t.Error("a timer goes on")
	}
}

// A deadline of the wall clock stays when the clock is set back, and the timer comes too early.
func TestEarlyTimer(t *testing.T) {
	c, _ := pair(t)
	c.SetReadDeadline(time.Now().Add(time.Hour))
	c.in.timer.Stop()
	c.pass(&c.in)
	if c.in.expired.Load() || !c.in.timer.Stop() {
		t.Error("the deadline was forgotten, or has passed")
	}
	c.SetReadDeadline(time.Time{})
	c.pass(&c.in)
	if c.in.expired.Load() || c.in.timer.Stop() {
		t.Error("there is a deadline that was taken back")
	}
}

// Nothing is read at once.
func TestReadNothing(t *testing.T) {
	c, _ := pair(t)
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	c.Close()
	if _, err := c.Read(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("of a closed one: %v", err)
	}
}

// Options reach the system.
func TestOptions(t *testing.T) {
	c, _ := pair(t)
	if err := c.SetNoDelay(false); err != nil {
		t.Error(err)
	}
	if err := c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 1500 * time.Millisecond, Interval: 7 * time.Second, Count: 3}); err != nil {
		t.Error(err)
	}
	for _, o := range []struct{ level, option, want int }{
		{syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 0}, {syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 2}, {syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 7}, {syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 3},
	} {
		if got, err := syscall.GetsockoptInt(c.fd, o.level, o.option); got != o.want || err != nil {
			t.Errorf("option %d is %d, want %d; %v", o.option, got, o.want, err)
		}
	}
}

// Others stay what they are.
func TestOthers(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Own(a) != a {
		t.Error("a pipe was taken")
	}
}
