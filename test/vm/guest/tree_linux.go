package guest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"nbd.example/nbd/test/harness"
)

// Tree remembers the files of a tree by their checksums.
type Tree map[string][sha256.Size]byte

// WriteTree writes files of many sizes below dir, in folders, and returns what they hold.
// Their names and contents depend only on the seed and the count.
func WriteTree(t *T, dir string, seed uint64, count int) Tree {
	tree := Tree{}
	for i := range count {
		name, data := TreeFile(seed, i)
		tree.Write(t, dir, name, data)
	}
	return tree
}

// TreeFile returns the name and contents of one of the files that WriteTree writes.
func TreeFile(seed uint64, i int) (name string, data []byte) {
	size := []int{0, 1, 511, 4096, 10_000, 70_001, 300_000}[i%7]
	return fmt.Sprintf("d%d/e%d/f%d", i%5, i%3, i), harness.Random(seed+uint64(i), size)
}

// Write writes one file of the tree.
func (tr Tree) Write(t *T, dir, name string, data []byte) {
	path := filepath.Join(dir, name)
	t.Must(os.MkdirAll(filepath.Dir(path), 0o755), "write a tree")
	t.Must(os.WriteFile(path, data, 0o644), "write a tree")
	tr.Note(name, data)
}

// Note remembers a file that was written by other means.
func (tr Tree) Note(name string, data []byte) { tr[name] = sha256.Sum256(data) }

// Verify fails if a file of the tree is not there, or not as it was written.
func (tr Tree) Verify(t *T, dir string) {
	for name, want := range tr {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("a file that was written: %v", err)
		} else if sha256.Sum256(data) != want {
			t.Errorf("%s does not hold what was written (%d bytes)", name, len(data))
		}
	}
	if len(tr) == 0 {
		t.Error("the tree that is to be verified is empty")
	}
}
