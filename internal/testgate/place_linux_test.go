package testgate

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPlaces writes into each kind of folder.
func TestPlaces(t *testing.T) {
	for name, x := range map[string]struct {
		dir  func(testing.TB) string
		want uint32 // 0 for any
	}{
		"Disk":    {DiskDir, 0},
		"NewDisk": {newDisk, unix.EXT4_SUPER_MAGIC},
		"Memory":  {MemoryDir, unix.TMPFS_MAGIC},
		"Mounted": {func(t testing.TB) string { return Mounted(t, "ramfs", "") }, unix.RAMFS_MAGIC},
	} {
		t.Run(name, func(t *testing.T) {
			var dir string
			t.Run("use", func(t *testing.T) {
				dir = x.dir(t)
				if got := magic(dir); x.want != 0 && got != x.want {
					t.Errorf("the file system is %#x, want %#x", got, x.want)
				}
				if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600); err != nil {
					t.Error(err)
				}
			})
			if _, err := os.Stat(filepath.Join(dir, "file")); err == nil {
				t.Errorf("%s is still there after its test", dir)
			}
		})
	}
}
