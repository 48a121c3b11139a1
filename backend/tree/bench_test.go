package tree_test

import (
	"path/filepath"
	"testing"

	"nbd.example/nbd/backend/tree"
)

// BenchmarkRead reads blocks whose files are open, those whose files must be opened,
// and those that have none.
func BenchmarkRead(b *testing.B) {
	for _, x := range []struct {
		name    string
		written int64 // blocks
	}{{"Open", 200}, {"Closed", 2000}, {"None", 0}} {
		b.Run(x.name, func(b *testing.B) {
			d := open(b, tree.Config{Path: filepath.Join(b.TempDir(), "tree"), Size: 64 << 20})
			p := make([]byte, tree.BlockSize)
			for i := range x.written {
				if err := d.WriteAt(b.Context(), p, i*tree.BlockSize, 0); err != nil {
					b.Fatal(err)
				}
			}
			n := max(x.written, 1000)
			for i := int64(0); b.Loop(); i++ {
				if err := d.ReadAt(b.Context(), p, i%n*tree.BlockSize); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
