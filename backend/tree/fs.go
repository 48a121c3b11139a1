package tree

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"nbd.example/nbd/internal/fileid"
)

// FS is where a tree lives: the system's files, but for tests. Its methods may be
// called concurrently, but for Open and Close. Errors for what does not exist are
// fs.ErrNotExist, and for what does fs.ErrExist.
type FS interface {
	// Open is called once, with the folder of the tree, which exists.
	Open(name string) error
	// OpenFile opens a file with the flags of os.OpenFile, and the mode 0600 for a new one.
	OpenFile(name string, flag int) (File, error)
	// OpenNow opens a file that exists, with the flags of os.OpenFile, if that needs no
	// waiting. Otherwise, or if it fails, it returns nil.
	OpenNow(name string, flag int) File
	// Mkdir makes a folder with the mode 0700.
	Mkdir(name string) error
	Remove(name string) error
	// ReadDir calls add with each name in a folder.
	ReadDir(name string, add func(string)) error
	// SyncDir makes the names in a folder stable, where the system needs that.
	SyncDir(name string) error
	// SyncAll makes everything stable that was done to the tree. It is called only if
	// SyncsAll says that it can.
	SyncAll() error
	SyncsAll() bool
	// Instance is for block.Caps, of a device of size bytes.
	Instance(size int64) string
	Close() error
}

// File is an open file. Its methods may be called concurrently, but for Close.
type File interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// ReadNow is ReadAt, and WriteNow WriteAt, if that needs no waiting. Otherwise, or
	// if it fails, it is not ok; then any part may have been written. What is behind the
	// end of the file reads as zeroes.
	ReadNow(p []byte, off int64) (ok bool)
	WriteNow(p []byte, off int64) (ok bool)
	Size() (int64, error)
	Truncate(size int64) error
	Sync() error
	Close() error
}

// system is the FS of the operating system.
type system struct {
	config Config // with all functions
	root   *os.File
	now    now
	mounts mounts
}

func newSystem(c Config) *system {
	if c.Open == nil {
		c.Open = os.OpenFile
	}
	if c.Mkdir == nil {
		c.Mkdir = os.Mkdir
	}
	if c.Remove == nil {
		c.Remove = os.Remove
	}
	return &system{config: c}
}

// Open implements FS. It locks the tree.
func (s *system) Open(name string) error {
	f, err := s.config.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	if !s.config.Force {
		if err := lock(f, s.config.ReadOnly); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	s.root = f
	s.findNow()
	return nil
}

// Mkdir implements FS.
func (s *system) Mkdir(name string) error { return s.config.Mkdir(name, 0o700) }

// Remove implements FS.
func (s *system) Remove(name string) error { return s.config.Remove(name) }

// ReadDir implements FS.
func (s *system) ReadDir(name string, add func(string)) error {
	f, err := s.config.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.note(f); err != nil {
		return err
	}
	for {
		names, err := f.Readdirnames(fan)
		for _, n := range names {
			add(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// SyncDir implements FS.
func (s *system) SyncDir(name string) error {
	if !syncsFolders {
		return nil
	}
	f, err := s.config.Open(name, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nobody can find anything there
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// SyncAll implements FS.
func (s *system) SyncAll() error { return s.syncAll() }

// SyncsAll implements FS.
func (s *system) SyncsAll() bool { return syncsAll }

// Instance implements FS. It names the folder, not its path: one that was replaced is another.
func (s *system) Instance(size int64) string {
	name := fileid.Name(s.root)
	if name == "" {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "tree %d %s", size, name))
	return fmt.Sprintf("%x", sum[:16])
}

// Close implements FS. It gives up the lock.
func (s *system) Close() error { return errors.Join(s.mounts.close(), s.root.Close()) }
