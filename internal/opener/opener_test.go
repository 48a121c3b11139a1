package opener

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestRelativeToStart(t *testing.T) {
	start, other := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(start, "a"), []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(start)
	o := Here()
	t.Chdir(other)
	b, err := ReadFile(o, "a", 5)
	if err != nil || string(b) != "12345" {
		t.Fatalf("ReadFile(a) = %q, %v", b, err)
	}
	if _, err := ReadFile(o, "a", 4); !errors.Is(err, errTooLong) {
		t.Errorf("ReadFile over the limit = %v, want %v", err, errTooLong)
	}
	if _, err := o.Stat("a"); err != nil {
		t.Errorf("Stat: %v", err)
	}
	if l, err := o.ReadDir("."); err != nil || len(l) != 1 {
		t.Errorf("ReadDir = %v, %v", l, err)
	}
	if err := o.Rename("a", "b"); err != nil {
		t.Errorf("Rename: %v", err)
	}
	if err := o.Remove("b"); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if got := o.Abs(filepath.Join(other, "x")); got != filepath.Join(other, "x") {
		t.Errorf("Abs of an absolute name = %q", got)
	}
}
