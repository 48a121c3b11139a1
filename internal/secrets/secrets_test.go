package secrets

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if Main() {
		return
	}
	os.Exit(m.Run())
}

func begin(t *testing.T, names ...string) *Reader {
	t.Helper()
	r, err := Start(names)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		r.cmd.Wait()
	})
	return r
}

// TestRead: files are read as they are when they are asked for, and only those of the
// start.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	r := begin(t, one, two)
	for _, text := range []string{"", "key", strings.Repeat("long ", 100_000)} {
		if err := os.WriteFile(one, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := r.Read(one); err != nil || string(got) != text {
			t.Errorf("%d bytes, %v; want %d", len(got), err, len(text))
		}
	}
	if _, err := r.Read(two); err == nil || !strings.Contains(err.Error(), "open "+two+": ") {
		t.Errorf("a file that is not there: %v", err)
	}
	if got, err := r.Read(one); err != nil || len(got) != 500_000 {
		t.Errorf("after an error: %d bytes, %v", len(got), err)
	}
	if !r.Knows(one) || r.Knows(dir) || (*Reader)(nil).Knows(one) {
		t.Error("it does not know what it knows")
	}
	// Whoever asks for another one, against the rules, gets nothing.
	if _, err := r.Read(dir); !errors.Is(err, ErrGone) {
		t.Errorf("a file that was not named at the start: %v", err)
	}
}

// TestGone: a helper that has ended is an error each time, and nobody waits.
func TestGone(t *testing.T) {
	name := filepath.Join(t.TempDir(), "one")
	r := begin(t, name)
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := r.Read(name); !errors.Is(err, ErrGone) {
			t.Errorf("read: %v", err)
		}
	}
	if err := (*Reader)(nil).Close(); err != nil {
		t.Error(err)
	}
}
