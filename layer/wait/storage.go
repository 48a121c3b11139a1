package wait

import (
	"errors"
	"os"
	"path/filepath"

	"nbd.example/nbd/internal/sparse"
)

// Storage is what a diff is kept in: a file, but for tests. Its methods may be
// called concurrently, but for Close and Remove.
type Storage interface {
	// ReadAt fills p, or returns an error. What was never written reads as zeroes.
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Size returns the size in bytes, and Truncate sets it.
	Size() (int64, error)
	Truncate(size int64) error
	// Punch makes a stretch read as zeroes and gives its room back, or returns
	// errors.ErrUnsupported, always, and changes nothing.
	Punch(off, n int64) error
	// Sync makes stable what was done before, the existence of the file included.
	Sync() error
	// Close closes it; or Remove does, and removes it.
	Close() error
	Remove() error
}

// file is the Storage on a file.
type file struct {
	*os.File
	remove func(string) error
}

func (c Config) storage() (Storage, error) {
	if c.Storage != nil {
		return c.Storage, nil
	}
	if c.Diff == "" {
		return nil, errors.New("it has no path; name the file that is to keep what is written")
	}
	open, remove := c.Open, c.Remove
	if open == nil {
		open = os.OpenFile
	}
	if remove == nil {
		remove = os.Remove
	}
	f, err := open(c.Diff, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err == nil && !info.Mode().IsRegular() {
		return nil, errors.Join(errors.New("it is no regular file, and a diff must be one"), f.Close())
	}
	if err := lock(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	sparse.Prepare(f) // as large as the device; where it cannot have holes its room is taken
	// The file may be new: what is flushed into it must not lose its name.
	if dir, err := open(filepath.Dir(c.Diff), os.O_RDONLY, 0); err == nil {
		err = dir.Sync()
		dir.Close()
		if err != nil && syncsFolders {
			return nil, errors.Join(err, f.Close())
		}
	}
	return file{File: f, remove: remove}, nil
}

// Size implements Storage.
func (f file) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Sync implements Storage.
func (f file) Sync() error { return datasync(f.File) }

// Punch implements Storage.
func (f file) Punch(off, n int64) error { return punch(f.File, off, n) }

// Remove implements Storage. The name goes while the lock is held, where the
// system can do that: else the file could be another's already.
func (f file) Remove() error {
	name := f.Name()
	err := f.remove(name)
	if closed := f.Close(); err == nil {
		return closed
	}
	return f.remove(name)
}
