package core_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nbd.example/nbd/chain/core"
)

// TestElements opens one chain with each element, and looks for its effect.
func TestElements(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "partitioned")
	table := make([]byte, 8192) // one partition, of 9 sectors from the third on
	copy(table[446:], "\x00\x00\x00\x00\x83\x00\x00\x00\x02\x00\x00\x00\x09\x00\x00\x00")
	copy(table[510:], "\x55\xaa")
	table[1024] = 8
	for name, p := range map[string][]byte{disk: table, filepath.Join(dir, "many.0"): {5, 6}, filepath.Join(dir, "many.1"): {7}} {
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		text     string
		size     int64
		readOnly bool
		first    byte
	}{
		{`"` + filepath.ToSlash(path) + `"`, 8192, false, 7},
		{path + " | readonly", 8192, true, 7},
		{"file:path=" + path + ",readonly", 8192, true, 7},
		{"file:" + path + ",readonly::cow:dir=" + dir, 8192, false, 7},
		{path + "::cow:sparse", 8192, false, 7},
		{"multi:" + dir + "/many", 3, false, 5},
		{"multi:" + dir + "/many,readonly", 3, true, 5},
		{"tree:" + dir + "/tree,size=1M", 1 << 20, false, 0},
		{disk + " | partition:1", 9 * 512, false, 8},
		{path + " | wait:" + dir + "/diff", 8192, false, 7},
		{"memory:1M", 1 << 20, false, 0},
		{"null:1E", 1 << 60, false, 0},
		{"pattern:64", 64, true, 0},
		{"pattern:64k | offset:63", 65536 - 63, true, 56},
		{"pattern:64k::offset:2k,size=8", 8, true, 0},
		{"memory:1000::truncate:2000", 2000, false, 0},
		{"memory:1000::truncate:round-up=512", 1024, false, 0},
		{"memory:1000::truncate:round-down=512", 512, false, 0},
		{"memory:1000::delay:read=1ns", 1000, false, 0},
		{"memory:1000::fault:read@512=EIO,write=ENOSPC,seed=1", 1000, false, 0},
	} {
		s, err := core.Registry(core.Files{}).Parse(x.text)
		if err != nil {
			t.Errorf("%s: %v", x.text, err)
			continue
		}
		d, err := s.Open(t.Context())
		if err != nil {
			t.Errorf("%s: %v", x.text, err)
			continue
		}
		p := []byte{99}
		if err := d.ReadAt(t.Context(), p, 0); err != nil || p[0] != x.first {
			t.Errorf("%s: the first byte is %d, %v; want %d", x.text, p[0], err, x.first)
		}
		if d.Size() != x.size || d.Caps().ReadOnly != x.readOnly {
			t.Errorf("%s: %d bytes, read-only %v; want %d, %v", x.text, d.Size(), d.Caps().ReadOnly, x.size, x.readOnly)
		}
		if strings.Contains(x.text, "ENOSPC") {
			if err := d.WriteAt(t.Context(), p, 0, 0); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%s: write: %v", x.text, err)
			}
		}
		if err := d.Close(); err != nil {
			t.Errorf("%s: close: %v", x.text, err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, 8192)) {
		t.Errorf("the file was changed, %v", err)
	}
}

func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"memory:1G | fault:raed=EIO":                       `unknown kind of operation "raed"`,
		"memory:1G | truncate:round-up=512,round-down=512": "not both",
		"memory:1G | offset":                               `write it like "offset:1G"`,
		"tree:/srv/tree":                                   "needs size",
		"memory:1G | partition":                            "needs number",
		"memory:1G | wait":                                 "needs diff",
	} {
		if _, err := core.Registry(core.Files{}).Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", text, err, want)
		}
	}
	s, err := core.Registry(core.Files{}).Parse("memory:1k | offset:2k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "past the end") {
		t.Errorf("offset past the end: %v", err)
	}
}
