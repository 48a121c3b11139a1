package proglog

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// logTo returns a log to a file, and what reads it.
func logTo(t *testing.T, c Config) (*Log, func() string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	c.Name, c.Stderr = "prog", f
	return New(c), func() string {
		text, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

func TestText(t *testing.T) {
	l, read := logTo(t, Config{})
	log := l.Logger()
	log.Info("plain", "key", "a b", "n", 1, "d", 1500*time.Microsecond)
	log.Warn("bad \x1b[31m", "q", "x\ny")
	log.Error("worse", slog.Group("g", "k", "v"))
	log.Debug("not seen")
	want := "prog: plain key=\"a b\" n=1 d=2ms\nprog: warning: bad \\x1b[31m q=\"x\\ny\"\nprog: worse g.k=v\n"
	if got := read(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	l.Started()
	log.With("a", 1).WithGroup("h").Info("later", "b", 2)
	line := strings.TrimPrefix(read(), want)
	stamp, rest, _ := strings.Cut(line, " ")
	if _, err := time.Parse(time.RFC3339, stamp); err != nil || rest != "prog: later a=1 h.b=2\n" {
		t.Errorf("once the start is over: %q, %v", line, err)
	}
}

func TestLevels(t *testing.T) {
	for level, want := range map[string]int{"debug": 4, "": 3, "info": 3, "warn": 2, "error": 1} {
		l, read := logTo(t, Config{Level: level})
		log := l.Logger()
		log.Debug("x")
		log.Info("x")
		log.Warn("x")
		log.Error("x")
		if got := strings.Count(read(), "\n"); got != want {
			t.Errorf("%q: %d lines, want %d", level, got, want)
		}
	}
}

func TestFormats(t *testing.T) {
	l, read := logTo(t, Config{Format: "json"})
	l.Logger().Info("m", "k", "v")
	var line struct{ Level, Msg, K string }
	if err := json.Unmarshal([]byte(read()), &line); err != nil || line.Msg != "m" || line.K != "v" || line.Level != "INFO" {
		t.Errorf("json: %s, %v", read(), err)
	}
	l, read = logTo(t, Config{Format: "logfmt"})
	l.Logger().Info("m", "k", "v")
	if got := read(); !strings.Contains(got, " level=INFO msg=m k=v\n") {
		t.Errorf("logfmt: %s", got)
	}
}

// TestQueue: nobody waits for a sink that does not move, and Flush waits for one that
// does.
func TestQueue(t *testing.T) {
	l, _ := logTo(t, Config{})
	enter, leave := make(chan struct{}), make(chan struct{})
	q := &queue{lines: make(chan line, queueLen)}
	var got []string
	go q.drain(func(_ slog.Level, text []byte) {
		if len(got) == 0 {
			close(enter)
			<-leave
		}
		got = append(got, string(text))
	})
	l.queue = q
	l.toSink(q.put)
	log := l.Logger()
	log.Info("first")
	<-enter
	for range 2 * queueLen {
		log.Info("more")
	}
	l.Flush(time.Millisecond) // in vain, and it returns
	close(leave)
	l.Flush(time.Minute)
	if len(got) != queueLen+1 {
		t.Errorf("%d lines came through, want %d: the first one and a full queue", len(got), queueLen+1)
	}
	if got[0] != "prog: first\n" {
		t.Errorf("the first line is %q", got[0])
	}
}

// TestNowhere: without syslog lines are dropped, and Flush has nothing to wait for.
func TestNowhere(t *testing.T) {
	l, read := logTo(t, Config{})
	l.toSink(nil)
	l.Logger().Error("gone")
	l.Flush(time.Minute)
	if got := read(); got != "" {
		t.Errorf("the terminal got %q", got)
	}
}
