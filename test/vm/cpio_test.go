package vm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"
)

// readCpio is the other half of cpioWriter: the names and contents in an archive.
func readCpio(t *testing.T, p []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	for off := 0; ; {
		if off%4 != 0 || len(p) < off+110 || string(p[off:][:6]) != "070701" {
			t.Fatalf("no header at %d", off)
		}
		var f [13]int
		for i := range f {
			if _, err := fmt.Sscanf(string(p[off+6+8*i:][:8]), "%x", &f[i]); err != nil {
				t.Fatalf("field %d at %d: %v", i, off, err)
			}
		}
		size, nameSize := f[6], f[11]
		name := string(p[off+110:][:nameSize-1])
		data := (off + 110 + nameSize + 3) / 4 * 4
		if name == "TRAILER!!!" {
			return files
		}
		files[name] = fmt.Sprintf("%o %s", f[1], p[data:][:size])
		off = (data + size + 3) / 4 * 4
	}
}

func TestCpio(t *testing.T) {
	var b bytes.Buffer
	c := cpioWriter{w: &b}
	c.add("d", modeDir|0o755, nil, 0, 0)
	c.add("d/f", modeFile|0o644, []byte("hello"), 0, 0)
	c.add("d/longer", modeLink|0o777, []byte("f"), 0, 0)
	c.add("d/empty", modeFile|0o600, nil, 0, 0)
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"d": "40755 ", "d/f": "100644 hello", "d/longer": "120777 f", "d/empty": "100600 "}
	if got := readCpio(t, b.Bytes()); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// full takes n bytes.
type full struct{ n int }

func (f *full) Write(p []byte) (int, error) {
	n := min(f.n, len(p))
	if f.n -= n; n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

func TestCpioFull(t *testing.T) {
	for _, n := range []int{0, 50, 120, 200} {
		c := cpioWriter{w: &full{n}}
		c.add("name", modeFile, make([]byte, 100), 0, 0)
		if err := c.close(); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

func TestArchiveFolders(t *testing.T) {
	var b bytes.Buffer
	a := &archive{cpio: cpioWriter{w: &b}, seen: map[string]bool{}}
	a.file("a/b/c", 0o644, []byte("1"))
	a.file("a/b/c", 0o644, []byte("2")) // the first one stays
	a.link("a/l", "b")
	a.node("dev/console", 5, 1)
	if err := errors.Join(a.err, a.cpio.close()); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"a": "40755 ", "a/b": "40755 ", "a/b/c": "100644 1", "a/l": "120777 b",
		"dev": "40755 ", "dev/console": "20600 ",
	}
	if got := readCpio(t, b.Bytes()); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
