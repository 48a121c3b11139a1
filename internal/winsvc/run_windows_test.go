package winsvc

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
)

// limit ends a test that hangs.
const limit = time.Minute

// manager is the other side of attend.
type manager struct {
	t        *testing.T
	session  *Session
	requests chan svc.ChangeRequest
	changes  chan svc.Status
	done     chan int
	status   chan int
}

func newManager(t *testing.T) *manager {
	m := &manager{
		t:        t,
		session:  &Session{signals: make(chan os.Signal, 4), ready: make(chan struct{})},
		requests: make(chan svc.ChangeRequest), changes: make(chan svc.Status), done: make(chan int, 1), status: make(chan int, 1),
	}
	go func() { m.status <- m.session.attend(m.requests, m.changes, m.done) }()
	m.want(svc.StartPending)
	return m
}

// want waits for a state; signs of life in the one before are passed over.
func (m *manager) want(state svc.State) svc.Status {
	m.t.Helper()
	late := time.After(limit)
	for {
		select {
		case s := <-m.changes:
			if s.State == state {
				return s
			}
			if s.CheckPoint == 0 {
				m.t.Fatalf("state %s, want %s", stateName(s.State), stateName(state))
			}
		case <-late:
			m.t.Fatalf("no state %s", stateName(state))
		}
	}
}

func (m *manager) control(c svc.Cmd) { m.requests <- svc.ChangeRequest{Cmd: c} }

func (m *manager) wantSignal(want os.Signal) {
	m.t.Helper()
	select {
	case got := <-m.session.Signals():
		if got != want {
			m.t.Fatalf("signal %v, want %v", got, want)
		}
	case <-time.After(limit):
		m.t.Fatalf("no signal, want %v", want)
	}
}

func (m *manager) end(status int) {
	m.t.Helper()
	m.done <- status
	late := time.After(limit)
	for {
		select {
		case <-m.changes: // a sign of life
		case got := <-m.status:
			if got != status {
				m.t.Errorf("status %d, want %d", got, status)
			}
			return
		case <-late:
			m.t.Fatal("it does not end")
		}
	}
}

func TestLife(t *testing.T) {
	m := newManager(t)
	m.session.Ready()
	m.session.Ready() // twice does no harm
	if s := m.want(svc.Running); s.Accepts&svc.AcceptStop == 0 || s.Accepts&svc.AcceptParamChange == 0 {
		t.Errorf("it accepts %x", s.Accepts)
	}
	m.control(svc.Interrogate)
	m.want(svc.Running)
	m.control(svc.ParamChange)
	m.wantSignal(syscall.SIGHUP)
	m.control(svc.Stop)
	if s := m.want(svc.StopPending); s.WaitHint == 0 || s.Accepts != 0 {
		t.Errorf("stopping: %+v", s)
	}
	m.wantSignal(syscall.SIGTERM)
	m.control(svc.Shutdown) // is known already
	m.control(svc.Interrogate)
	m.want(svc.StopPending)
	m.end(0)
	if n := len(m.session.signals); n != 0 {
		t.Errorf("%d more signals", n)
	}
}

// TestSignsOfLife: a program that takes its time says that it is still there.
func TestSignsOfLife(t *testing.T) {
	m := newManager(t)
	for i := range uint32(2) {
		if s := m.want(svc.StartPending); s.CheckPoint != i+1 {
			t.Errorf("sign of life %d has number %d", i+1, s.CheckPoint)
		}
	}
	m.session.Ready()
	m.want(svc.Running)
	m.end(3)
}

// TestFailedStart ends before it is ready, and one is stopped while it starts.
func TestFailedStart(t *testing.T) {
	m := newManager(t)
	m.end(1)

	m = newManager(t)
	m.control(svc.Stop)
	m.want(svc.StopPending)
	m.session.Ready() // too late
	m.wantSignal(syscall.SIGTERM)
	m.control(svc.Interrogate)
	m.want(svc.StopPending)
	m.end(0)
}

// TestNoEventLog: without one, lines are lost, and nothing else.
func TestNoEventLog(t *testing.T) { new(Session).Log(slog.LevelError, []byte("lost")) }

// levels are all that the event log tells apart, and what Windows calls them.
var levels = map[slog.Level]string{
	slog.LevelDebug: "information", slog.LevelInfo: "information", slog.LevelWarn: "warning", slog.LevelError: "error",
}

// heard is an event log that remembers, and is full then.
type heard []string

var errFull = errors.New("the event log is full")

func (h *heard) hear(kind string, id uint32, text string) error {
	if len(*h) > 0 {
		return errFull
	}
	*h = append(*h, fmt.Sprintf("%s %d %s", kind, id, text))
	return nil
}

func (h *heard) Info(id uint32, text string) error    { return h.hear("information", id, text) }
func (h *heard) Warning(id uint32, text string) error { return h.hear("warning", id, text) }
func (h *heard) Error(id uint32, text string) error   { return h.hear("error", id, text) }

// TestEvents: each line becomes an event of its level, with the number that EventCreate.exe
// has a text for.
func TestEvents(t *testing.T) {
	for level, kind := range levels {
		var h heard
		s := &Session{events: &h}
		if s.Log(level, []byte("some text\n")); len(h) != 1 || h[0] != kind+" 1 some text" {
			t.Errorf("%v is logged as %q", level, h)
		}
		if err := s.write(level, []byte("more\n")); err != errFull {
			t.Errorf("%v: the error of the event log is %v", level, err)
		}
	}
}

// TestEventLog has the system's event log take them. There they cannot be read again: wine keeps
// nothing.
func TestEventLog(t *testing.T) {
	const source = "nbd-event-test"
	if err := eventlog.InstallAsEventCreate(source, eventlog.Error|eventlog.Warning|eventlog.Info); err != nil {
		t.Fatal(err)
	}
	defer eventlog.Remove(source)
	log, err := eventlog.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s := &Session{events: log}
	for level, kind := range levels {
		if err := s.write(level, []byte("a test of level "+kind+"\n")); err != nil {
			t.Errorf("%v: %v", level, err)
		}
	}
}
