// Package tree keeps each block of a device in a file of its own, in a tree of
// folders. It is the treefiles of nbd-server, and can use trees that the reference has
// written, and the other way round. It is for file systems that do not take large
// files well: network file systems, mostly.
//
// # The format
//
// A block has 4096 bytes, and so has its file, also that of the last block, if the
// device ends inside. A block without a file reads as zeroes. A folder has up to
// 1024 files or folders. With less than 4 MiB (1024 blocks), the files lie in the folder
// of the tree; with less than 4 GiB there is one level of folders between, with less
// than 4 TiB there are two, and so on. The names are made of the number of the block,
// ten bits for each level, in four upper-case hexadecimal digits:
//
//	PATH/FILE00F4                            block 0xf4
//	PATH/TREE0002/FILE0100                   block 0x2<<10 | 0x100
//	PATH/TREE0001/TREE03FF/TREE0000/FILE0001 block 0x1<<30 | 0x3ff<<20 | 0<<10 | 1
//
// So the size decides on the names: a tree must be opened with the size that it was
// made with, or one that needs as many levels. Other names are passed over. A file that
// is too short (a crash may leave an empty one) reads as if zeroes followed, and
// gets its full length when it is written; the reference fails to read it.
//
// # What is kept in memory
//
// Open files ([Config].MaxOpen), for each folder that was used which names are
// in it (128 bytes, of up to 16384 folders), and what was changed since the last
// flush. So nobody else may change the tree meanwhile; the folder is locked for that
// where the system can, against our own programs.
//
// # Speed
//
// Opening and closing a file costs the system half of what it takes to read it. What is
// in memory is read and written in place (block.Direct), its file being opened if it must;
// what may have to wait for a disk, and the making of files, is left to others, and so are long
// writes: more than one can be under way then.
//
// # Durability
//
// A flush makes stable the files that were written since the last one, and the
// folders in which names have come or gone. When there are many of them, or one of the
// files has been closed meanwhile, and the system can, it makes the whole file system stable
// at once (all of them, if folders of the tree are mount points, or links that lead
// elsewhere). A write with FUA makes its own files and their folders stable.
//
// Trimming and zeroing remove files. Folders are never removed.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"nbd.example/nbd/block"
)

// BlockSize is the size of a block and of its file, in bytes.
const BlockSize = 1 << blockBits

const (
	blockBits = 12
	fanBits   = 10 // of what a folder holds
	fan       = 1 << fanBits
)

// Config says which tree to open, and how.
type Config struct {
	// Path is the folder of the tree. If there is none it is made, with the mode 0700,
	// in a folder that is there.
	Path string
	// Size of the device in bytes, more than 0. Nothing in a tree tells it.
	Size     int64
	ReadOnly bool
	// Sync makes every write stable before it returns.
	Sync bool
	// Force opens a tree that is in use.
	Force bool
	// MaxOpen is how many files are kept open; 0 means 16384, or a quarter of what the
	// process may open if that is less. There are fewer where it has too many others open.
	MaxOpen int
	// Open, Mkdir and Remove are like os.OpenFile, os.Mkdir and os.Remove, which nil
	// means. On Linux, Open opens only folders; files are opened from that of the tree.
	Open   func(name string, flag int, perm fs.FileMode) (*os.File, error)
	Mkdir  func(name string, perm fs.FileMode) error
	Remove func(name string) error
	// FS, if not nil, is used in place of the system's files.
	FS FS
}

// Tree is a back end. Its methods may be called concurrently.
type Tree struct {
	config Config
	fs     FS
	size   int64
	levels int // of folders between that of the tree and the files

	// Who reads or writes the file of a block holds its lock for reading, who makes or
	// removes it for writing.
	locks [lockCount]sync.RWMutex
	known known
	cache cache
	dirty dirty
	made  sync.Mutex // one who makes folders at a time
}

const lockCount = 256

var (
	_ block.Writer     = (*Tree)(nil)
	_ block.Flusher    = (*Tree)(nil)
	_ block.Trimmer    = (*Tree)(nil)
	_ block.ZeroWriter = (*Tree)(nil)
	_ block.Extenter   = (*Tree)(nil)
)

// Open opens a tree, or makes it.
func Open(c Config) (*Tree, error) {
	if c.Size <= 0 {
		return nil, fmt.Errorf("open the tree %s: its size must be named, and be more than 0; nothing in a tree tells it", c.Path)
	}
	if c.MaxOpen <= 0 {
		c.MaxOpen = max(1, min(16384, mostOpen()/4))
	}
	c.Path = filepath.Clean(c.Path)
	t := &Tree{config: c, fs: c.FS, size: c.Size, levels: levels(c.Size)}
	if t.fs == nil {
		t.fs = newSystem(c)
	}
	if err := t.openRoot(); err != nil {
		return nil, fmt.Errorf("open the tree %s: %w", c.Path, err)
	}
	t.known.tree, t.cache, t.dirty.syncsAll = t, newCache(c.MaxOpen), t.fs.SyncsAll()
	return t, nil
}

// openRoot sees to it that the folder is there, and opens it.
func (t *Tree) openRoot() error {
	err := t.fs.ReadDir(t.config.Path, func(string) {})
	if errors.Is(err, fs.ErrNotExist) && !t.config.ReadOnly {
		if err = t.fs.Mkdir(t.config.Path); err == nil {
			err = t.fs.SyncDir(filepath.Dir(t.config.Path))
		}
	}
	if err != nil {
		return err
	}
	return t.fs.Open(t.config.Path)
}

// Caps implements block.Backend.
func (t *Tree) Caps() block.Caps {
	return block.Caps{
		Size: t.size, BlockSize: block.BlockSize{Preferred: BlockSize}, ReadOnly: t.config.ReadOnly, MultiConn: true,
		FUA: fua(t.config.ReadOnly), Instance: t.fs.Instance(t.size),
	}
}

func fua(readOnly bool) block.Level {
	if readOnly {
		return block.Auto
	}
	return block.Native
}

// Close implements block.Backend.
func (t *Tree) Close() error { return errors.Join(t.cache.close(), t.fs.Close()) }

// lock returns the lock of a block.
func (t *Tree) lock(b int64) *sync.RWMutex { return &t.locks[b%lockCount] }

// each calls do for what each block has of a range: with the bytes from i on, up
// to end, which begin at the place at of the block.
func each(ctx context.Context, off, n int64, do func(b, at, i, end int64) error) error {
	for i := int64(0); i < n; {
		at := (off + i) % BlockSize
		end := min(n, i+BlockSize-at)
		if err := do((off+i)>>blockBits, at, i, end); err != nil {
			return &block.OffsetError{Off: off + i, Err: err}
		}
		if i = end; i < n && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}
