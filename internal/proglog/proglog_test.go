package proglog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/internal/asynclog"
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
	l.Flush()
	line := strings.TrimPrefix(read(), want)
	stamp, rest, _ := strings.Cut(line, " ")
	if _, err := time.Parse(time.RFC3339, stamp); err != nil || rest != "prog: later a=1 h.b=2\n" {
		t.Errorf("once the start is over: %q, %v", line, err)
	}
}

// What is held is written once it is known where the log goes, in its order; warnings at once.
func TestHold(t *testing.T) {
	for name, end := range map[string]func(*Log){"started": (*Log).Started, "flushed": (*Log).Flush, "closed": (*Log).Close} {
		l, read := logTo(t, Config{})
		log := l.Logger()
		l.Hold()
		log.Info("one")
		log.Warn("two")
		log.Info("three")
		if got := read(); got != "prog: warning: two\n" {
			t.Errorf("%s: held: %q", name, got)
		}
		end(l)
		log.Info("four")
		l.Close()
		if got := read(); !strings.HasPrefix(got, "prog: warning: two\nprog: one\nprog: three\n") || !strings.HasSuffix(got, "prog: four\n") {
			t.Errorf("%s: %q", name, got)
		}
	}
	l, read := logTo(t, Config{})
	l.Hold()
	for range mostHeld + 1 {
		l.Logger().Info("one more")
	}
	if got := read(); strings.Count(got, "more") != 1 {
		t.Errorf("more than may wait: %q", got)
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

// TestJournal: lines have their priority, and no time.
func TestJournal(t *testing.T) {
	var b bytes.Buffer
	l := New(Config{Name: "prog", Format: "json", Level: "debug", Sink: journal(&b)})
	log := l.Logger()
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		log.Log(t.Context(), level, "m")
	}
	for i, line := range strings.Split(strings.TrimSpace(b.String()), "\n") {
		if want := []string{"<7>{", "<6>{", "<4>{", "<3>{"}[i]; !strings.HasPrefix(line, want) {
			t.Errorf("line %d is %q, want one that begins with %q", i, line, want)
		}
	}
	b.Reset()
	l = New(Config{Name: "prog", Sink: journal(&b)})
	l.Started()
	l.Logger().Warn("m")
	l.Close()
	if got := b.String(); got != "<4>prog: warning: m\n" {
		t.Errorf("text: %q", got)
	}
}

// TestHang: once the start is over nobody waits for whoever takes the log; what is dropped
// is counted, and what is not dropped has come through when Flush returns.
func TestHang(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		enter, leave := make(chan struct{}), make(chan struct{})
		var got []string
		l := New(Config{Name: "prog", Format: format, Sink: func(_ slog.Level, line []byte) {
			if len(got) == 1 {
				close(enter)
				<-leave
			}
			got = append(got, string(line))
		}})
		log := l.Logger()
		log.Info("at once")
		if len(got) != 1 {
			t.Errorf("%s: %q were written before the call returned", format, got)
		}
		l.Started()
		log.Info("first")
		<-enter
		const more = 1000
		for range more {
			log.Info("more", "text", strings.Repeat("x", 4<<10))
		}
		close(leave)
		l.Flush()
		var through, dropped, reports int
		for _, line := range got[2:] {
			if strings.Contains(line, "more") {
				through++
				continue
			}
			var n int
			_, number, _ := strings.Cut(line, `"lines":`)
			if format == "text" {
				_, number, _ = strings.Cut(line, "warning: lines of the log were dropped, since they were not taken in time lines=")
			}
			if _, err := fmt.Sscan(strings.TrimRight(number, "}\n"), &n); err != nil {
				t.Errorf("%s: %q: %v", format, line, err)
			}
			dropped += n
			reports++
		}
		if through == 0 || reports != 1 || through+dropped != more {
			t.Errorf("%s: %d lines came through, %d were reported to be dropped, in %d reports", format, through, dropped, reports)
		}
		log.Info("last")
		l.Close()
		if last := got[len(got)-1]; !strings.Contains(last, "last") {
			t.Errorf("%s: the last line is %q", format, last)
		}
	}
}

// TestBurst: many lines at once all come through where nothing hangs.
func TestBurst(t *testing.T) {
	l, read := logTo(t, Config{})
	log := l.Logger()
	l.Started()
	const goroutines, count = 4, 3000
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range count {
				log.Error("problem", "text", strings.Repeat("x", 1<<10))
			}
		})
	}
	wg.Wait()
	l.Close()
	if got := strings.Count(read(), "problem"); got != goroutines*count {
		t.Errorf("%d of %d lines came through", got, goroutines*count)
	}
}

// TestHandlerFlush: who has only the handler can wait for the lines, too.
func TestHandlerFlush(t *testing.T) {
	l, read := logTo(t, Config{})
	l.Started()
	front := asynclog.New(l.Logger().With("a", 1).Handler())
	defer front.Close(t.Context())
	slog.New(front).Info("through both")
	if err := front.Flush(t.Context()); err != nil || !strings.Contains(read(), "through both a=1") {
		t.Errorf("%q, %v", read(), err)
	}
}

// TestHangForever: a log that takes nothing keeps no program from its end.
func TestHangForever(t *testing.T) {
	forever := make(chan struct{})
	defer close(forever)
	l := New(Config{Name: "prog", Sink: func(slog.Level, []byte) { <-forever }})
	l.Started()
	l.Logger().Error("last")
	l.Close()
}
