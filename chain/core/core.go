// Package core fills a registry with the usual back ends and layers.
//
// # Concepts
//
// Package chain knows how chains are written, and no element. This package knows
// the elements of this module that need nothing but the operating system, and
// declares for each what it is called and what can be said about it. A program
// that carries more adds to what [Registry] returns; one that carries less fills a
// registry by itself.
package core

import (
	"io/fs"
	"os"

	"nbd.example/nbd/chain"
	"nbd.example/nbd/layer/wait"
)

// Files opens what elements keep on disk. The zero value asks the system.
type Files struct {
	Open func(name string, flag int, perm fs.FileMode) (*os.File, error) // nil means os.OpenFile
	Stat func(name string) (fs.FileInfo, error)                          // nil means os.Stat
	// CreateTemp makes a file that nobody else needs to find. Nil means os.CreateTemp.
	CreateTemp func(dir, pattern string) (*os.File, error)
	Remove     func(name string) error                   // nil means os.Remove
	Mkdir      func(name string, perm fs.FileMode) error // nil means os.Mkdir
	// Waits, if not nil, has every device of a layer wait as a member while it is
	// open: Waits.Merge merges them all.
	Waits *wait.Group
}

// Registry returns a new registry with the back ends file, multi, tree, memory, null
// and pattern, and the layers readonly, cow, offset, truncate, delay, fault, partition
// and wait. They open files through f.
func Registry(f Files) *chain.Registry {
	r := &chain.Registry{}
	addBackends(r, f)
	addLayers(r, f)
	return r
}
