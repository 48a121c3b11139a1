package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"
)

// T is the [testing.TB] of a scenario. What it does not define ends the scenario with a
// failure when it is called: parallel tests, skipping, changes of the environment.
type T struct {
	testing.TB // nil: there to be a TB, which has a private method
	// Args is what Scenario.Host has returned.
	Args []string

	agent *agent
	nonce string
	name  string

	mu       sync.Mutex
	failed   bool
	cleanups []func()
}

var _ testing.TB = (*T)(nil)

// Name returns the name of the scenario.
func (t *T) Name() string { return t.name }

// Helper is there for [testing.TB]: lines of the log name their places anyway.
func (t *T) Helper() {}

// Context returns one that is never cancelled.
func (t *T) Context() context.Context { return context.Background() }

// Failed reports whether the scenario has failed.
func (t *T) Failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

// Fail makes the scenario fail, and goes on.
func (t *T) Fail() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = true
}

// FailNow makes the scenario fail, and ends it. Only the scenario's own goroutine may
// call it.
func (t *T) FailNow() {
	t.Fail()
	runtime.Goexit()
}

// Log, and the others below, do as those of [testing.TB].
func (t *T) Log(args ...any) { t.log(fmt.Sprintln(args...)) }

// Logf logs.
func (t *T) Logf(format string, args ...any) { t.log(fmt.Sprintf(format, args...)) }

// Error logs and fails.
func (t *T) Error(args ...any) { t.log(fmt.Sprintln(args...)); t.Fail() }

// Errorf logs and fails.
func (t *T) Errorf(format string, args ...any) { t.log(fmt.Sprintf(format, args...)); t.Fail() }

// Fatal logs, fails, and ends the scenario.
func (t *T) Fatal(args ...any) { t.log(fmt.Sprintln(args...)); t.FailNow() }

// Fatalf logs, fails, and ends the scenario.
func (t *T) Fatalf(format string, args ...any) { t.log(fmt.Sprintf(format, args...)); t.FailNow() }

// Cleanup calls f when the scenario has ended; the last one first.
func (t *T) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

// TempDir makes a folder in memory, which is removed with the scenario.
func (t *T) TempDir() string {
	dir, err := os.MkdirTemp("", "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Must ends the scenario if there is an error. What says where it came from.
func (t *T) Must(err error, what string) {
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// Await waits until what is so, and fails the scenario if that takes too long. It asks
// again and again, for things of the kernel that tell nobody when they change.
func (t *T) Await(what string, so func() bool) { t.AwaitFor(awaitLimit, what, so) }

// AwaitFor is Await for what may take longer.
func (t *T) AwaitFor(most time.Duration, what string, so func() bool) {
	limit := time.After(most)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !so() {
		select {
		case <-again.C:
		case <-limit:
			t.Fatalf("waited in vain for %v: %s", most, what)
		}
	}
}

// awaitLimit ends a wait that is in vain. It is no measure of speed: on a busy host the
// kernel may leave a connection unread until its requests have waited for 30 s (see package
// kernel, "What hangs").
const awaitLimit = 90 * time.Second

// log sends a line, with the place in the scenario that it comes from.
func (t *T) log(text string) {
	var at []string
	pc := make([]uintptr, 16)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	for {
		f, more := frames.Next()
		if base := filepath.Base(filepath.Dir(f.File)); base == "scenarios" {
			at = append(at, fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line))
		}
		if !more {
			break
		}
	}
	text = strings.TrimRight(text, "\n")
	if len(at) > 0 {
		text = strings.Join(at, " < ") + ": " + text
	}
	t.agent.emit(Event{Kind: Log, Nonce: t.nonce, Text: text})
}

// call runs f as a scenario: FailNow ends it, and a panic is a failure.
func (t *T) call(f func(*T)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				t.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		f(t)
	}()
	<-done
}

// cleanup runs what was registered, also if one of them fails.
func (t *T) cleanup() {
	for {
		t.mu.Lock()
		n := len(t.cleanups)
		if n == 0 {
			t.mu.Unlock()
			return
		}
		f := t.cleanups[n-1]
		t.cleanups = t.cleanups[:n-1]
		t.mu.Unlock()
		t.call(func(*T) { f() })
	}
}
