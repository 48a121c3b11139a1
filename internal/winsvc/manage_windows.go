package winsvc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"
)

// Config says how to install a service. Name and Program are needed.
type Config struct {
	Name        string // what the commands of Windows know it by
	DisplayName string // what people see; "" for the name
	Description string
	Program     string   // the absolute path of the program
	Args        []string // its command line, without its name
	// Account is the one that it runs under: "" for LocalSystem, which may use
	// disks, or NT AUTHORITY\LocalService, NT SERVICE\NAME and the like, which
	// need no password.
	Account string
	// Manual leaves the start to people and other services; else it is started
	// with the system.
	Manual bool
}

// pauses says how long after a failure the service is started again: after the
// first of a day, the second, and all further ones.
var pauses = []time.Duration{5 * time.Second, 30 * time.Second, time.Minute}

// open connects to the manager. The caller closes it.
func open() (*mgr.Mgr, error) {
	m, err := mgr.Connect()
	return m, explain(err)
}

// explain says what to do about an error of the manager.
func explain(err error) error {
	switch {
	case errors.Is(err, windows.ERROR_ACCESS_DENIED):
		return fmt.Errorf("%w: services are for administrators; run this in a console with their rights", err)
	case errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST):
		return fmt.Errorf("%w; the command install makes it one", err)
	case errors.Is(err, windows.ERROR_SERVICE_MARKED_FOR_DELETE):
		return fmt.Errorf("%w; close the programs that look at it, such as the list of services", err)
	}
	return err
}

// with calls do with a service.
func with(name string, do func(*mgr.Service) error) error {
	m, err := open()
	if err != nil {
		return fmt.Errorf("service %s: %w", name, err)
	}
	defer m.Disconnect()
	s, err := m.OpenService(name)
	if err != nil {
		return fmt.Errorf("service %s: %w", name, explain(err))
	}
	defer s.Close()
	if err := do(s); err != nil {
		return fmt.Errorf("service %s: %w", name, explain(err))
	}
	return nil
}

// Install makes a program a service, and its name a source of the event log. It
// does not start it.
func Install(c Config) error {
	m, err := open()
	if err != nil {
		return fmt.Errorf("install service %s: %w", c.Name, err)
	}
	defer m.Disconnect()
	config := mgr.Config{
		DisplayName: c.DisplayName, Description: c.Description, ServiceStartName: c.Account,
		StartType: mgr.StartAutomatic, ErrorControl: mgr.ErrorNormal, Dependencies: []string{"Tcpip"},
	}
	if config.DisplayName == "" {
		config.DisplayName = c.Name
	}
	if c.Manual {
		config.StartType = mgr.StartManual
	}
	s, err := m.CreateService(c.Name, c.Program, config, c.Args...)
	if err != nil {
		return fmt.Errorf("install service %s: %w", c.Name, explain(err))
	}
	defer s.Close()
	if err := finish(s, c.Name); err != nil {
		return errors.Join(fmt.Errorf("install service %s: %w", c.Name, err), s.Delete())
	}
	return nil
}

// finish adds what belongs to an installed service.
func finish(s *mgr.Service, name string) error {
	var actions []mgr.RecoveryAction
	for _, pause := range pauses {
		actions = append(actions, mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: pause})
	}
	err := s.SetRecoveryActions(actions, uint32((24 * time.Hour).Seconds()))
	if err == nil {
		err = s.SetRecoveryActionsOnNonCrashFailures(true)
	}
	// wine has no recovery.
	if err != nil && !errors.Is(err, windows.ERROR_INVALID_LEVEL) && !errors.Is(err, windows.ERROR_CALL_NOT_IMPLEMENTED) {
		return fmt.Errorf("have it started again after a failure: %w", err)
	}
	eventlog.Remove(name) // of an earlier installation, whose program may be elsewhere
	if err := eventlog.InstallAsEventCreate(name, eventlog.Error|eventlog.Warning|eventlog.Info); err != nil {
		return fmt.Errorf("register it with the event log: %w", err)
	}
	return nil
}

// Remove stops a service and removes it.
func Remove(ctx context.Context, name string) error {
	return with(name, func(s *mgr.Service) error {
		if err := stop(ctx, s); err != nil {
			return err
		}
		if err := s.Delete(); err != nil {
			return err
		}
		return eventlog.Remove(name)
	})
}

// Start starts a service and waits until it runs.
func Start(ctx context.Context, name string) error {
	return with(name, func(s *mgr.Service) error {
		if err := s.Start(); err != nil && !errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
			return err
		}
		status, err := await(ctx, s, svc.Running, svc.Stopped)
		if err != nil {
			return err
		}
		if status.State == svc.Stopped {
			code := status.Win32ExitCode
			if code == uint32(windows.ERROR_SERVICE_SPECIFIC_ERROR) {
				code = status.ServiceSpecificExitCode
			}
			return fmt.Errorf("it ended with status %d before it served; the event log says why", code)
		}
		return nil
	})
}

// Stop stops a service and waits for its end.
func Stop(ctx context.Context, name string) error {
	return with(name, func(s *mgr.Service) error { return stop(ctx, s) })
}

func stop(ctx context.Context, s *mgr.Service) error {
	if _, err := s.Control(svc.Stop); err != nil {
		if errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
			return nil
		}
		// While it starts or stops it takes no controls; the latter is as good.
		if status, bad := s.Query(); bad != nil || status.State != svc.StopPending && status.State != svc.Stopped {
			return err
		}
	}
	_, err := await(ctx, s, svc.Stopped)
	return err
}

// Reload has a service read its configuration again.
func Reload(name string) error {
	return with(name, func(s *mgr.Service) error {
		_, err := s.Control(svc.ParamChange)
		return err
	})
}

// Status is what the manager knows of a service.
type Status struct {
	State   string // such as "running"
	Process uint32 // its number, 0 if there is none
}

// Query asks for the status of a service.
func Query(name string) (st Status, err error) {
	err = with(name, func(s *mgr.Service) error {
		status, err := s.Query()
		st = Status{State: stateName(status.State), Process: status.ProcessId}
		return err
	})
	return st, err
}

func stateName(s svc.State) string {
	switch s {
	case svc.Stopped:
		return "stopped"
	case svc.StartPending:
		return "starting"
	case svc.StopPending:
		return "stopping"
	case svc.Running:
		return "running"
	}
	return fmt.Sprintf("state %d", s)
}

// await asks until the service is in one of the states.
func await(ctx context.Context, s *mgr.Service, states ...svc.State) (svc.Status, error) {
	ask := time.NewTicker(50 * time.Millisecond)
	defer ask.Stop()
	for {
		status, err := s.Query()
		if err != nil {
			return status, err
		}
		for _, want := range states {
			if status.State == want {
				return status, nil
			}
		}
		select {
		case <-ask.C:
		case <-ctx.Done():
			return status, fmt.Errorf("it is still %s: %w", stateName(status.State), context.Cause(ctx))
		}
	}
}
