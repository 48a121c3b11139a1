package winsvc

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
)

// patience is how long the manager waits for the next sign of life, and report how
// often it gets one.
const (
	patience = 20 * time.Second
	report   = 2 * time.Second
)

// eventID is the number of all events. The file with their texts, EventCreate.exe,
// is one of Windows', and has a text for each number that is what the program says.
const eventID = 1

// Session is the program's side of a service that runs. Its methods may be called
// concurrently.
type Session struct {
	signals chan os.Signal
	ready   chan struct{}
	once    sync.Once
	events  events // nil if there is no event log
}

// events is what an event log takes, by *eventlog.Log.
type events interface {
	Info(id uint32, text string) error
	Warning(id uint32, text string) error
	Error(id uint32, text string) error
}

// Signals gives what the manager wants: syscall.SIGTERM to end, syscall.SIGHUP to
// read the configuration again.
func (s *Session) Signals() <-chan os.Signal { return s.signals }

// Ready tells the manager that the service runs.
func (s *Session) Ready() { s.once.Do(func() { close(s.ready) }) }

// Log writes a line to the event log. One that is lost cannot be reported anywhere.
func (s *Session) Log(level slog.Level, line []byte) { s.write(level, line) }

func (s *Session) write(level slog.Level, line []byte) error {
	if s.events == nil {
		return nil
	}
	text := strings.TrimSuffix(string(line), "\n")
	switch {
	case level >= slog.LevelError:
		return s.events.Error(eventID, text)
	case level >= slog.LevelWarn:
		return s.events.Warning(eventID, text)
	}
	return s.events.Info(eventID, text)
}

// Run is called by a program that the manager has started as the service name. It
// calls main, which returns the program's exit status, and returns when the
// manager knows the end. An error says that there was no talk with the manager,
// and that main was not called.
func Run(name string, main func(*Session) int) (status int, err error) {
	h := &handler{name: name, main: main}
	if err := svc.Run(name, h); err != nil {
		if errors.Is(err, windows.ERROR_FAILED_SERVICE_CONTROLLER_CONNECT) {
			err = fmt.Errorf("%w: only the service manager can run it; start it by the command start", err)
		}
		return 0, fmt.Errorf("service %s: %w", name, err)
	}
	return h.status, nil
}

type handler struct {
	name   string
	main   func(*Session) int
	status int
}

// Execute runs the service from start to end.
func (h *handler) Execute(_ []string, requests <-chan svc.ChangeRequest, changes chan<- svc.Status) (ownCode bool, code uint32) {
	s := &Session{signals: make(chan os.Signal, 4), ready: make(chan struct{})}
	if log, err := eventlog.Open(h.name); err == nil {
		s.events = log
		defer log.Close()
	}
	done := make(chan int, 1)
	go func() { done <- h.main(s) }()
	h.status = s.attend(requests, changes, done)
	return h.status != 0, uint32(h.status)
}

// attend tells the manager about the program, and the program about the manager,
// until the program ends. It returns the program's status.
func (s *Session) attend(requests <-chan svc.ChangeRequest, changes chan<- svc.Status, done <-chan int) int {
	alive := time.NewTicker(report)
	defer alive.Stop()
	now := svc.Status{State: svc.StartPending, WaitHint: uint32(patience.Milliseconds())}
	changes <- now
	ready := s.ready
	for {
		select {
		case status := <-done:
			// Package svc reports the end, with the status.
			return status
		case <-ready:
			ready = nil
			if now.State == svc.StartPending {
				now = svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown | svc.AcceptPreShutdown | svc.AcceptParamChange}
				changes <- now
			}
		case <-alive.C:
			if now.State != svc.Running {
				now.CheckPoint++
				changes <- now
			}
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				changes <- now
			case svc.ParamChange:
				s.signal(syscall.SIGHUP)
			case svc.Stop, svc.Shutdown, svc.PreShutdown:
				if now.State != svc.StopPending {
					now = svc.Status{State: svc.StopPending, WaitHint: uint32(patience.Milliseconds())}
					changes <- now
					s.signal(syscall.SIGTERM)
				}
			}
		}
	}
}

// signal passes on what is wanted, unless the program has more than enough to do.
func (s *Session) signal(sig os.Signal) {
	select {
	case s.signals <- sig:
	default:
	}
}
