package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/internal/sparse"
	"nbd.example/nbd/layer/cow"
)

// openFile opens a file the way the reference does: it may be created, cut to
// size, temporary, and under a diff.
func (o *opening) openFile(path string) (*block.Device, error) {
	x, open := o.x, o.p.env.open
	private := x.CopyOnWrite && !x.ReadOnly
	c := file.Config{
		Path: path, ReadOnly: x.ReadOnly || private, Sync: x.Sync, Size: x.FileSize,
		Open: open.OpenFile, Stat: open.Stat,
	}
	if x.Temporary {
		f, err := temporary(open, c.Path, x.FileSize)
		if err != nil {
			return nil, err
		}
		// Its own already: whoever opens the name would find nothing.
		c.Open = func(string, int, fs.FileMode) (*os.File, error) { return f, nil }
		c.Stat = func(string) (fs.FileInfo, error) { return f.Stat() }
	}
	f, err := file.Open(c)
	if err != nil && !c.ReadOnly && !x.Temporary && cannotWrite(err) {
		// So does the reference; think of a CD-ROM.
		c.ReadOnly = true
		if ro, again := file.Open(c); again == nil {
			o.p.log.Warn("the file cannot be written, it is served read-only", "export", x.Name, "file", c.Path, "error", err)
			f, err = ro, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if !private {
		return block.New(f)
	}
	dir := x.COWDir
	if dir == "" {
		dir = filepath.Dir(path)
	}
	return block.Stack(f, cow.Layer(cow.Config{
		Dir: dir, Sparse: x.SparseCOW,
		CreateTemp: func(dir, pattern string) (*os.File, error) { return nameless(open, dir, pattern) },
	}))
}

// cannotWrite tells whether a file might still be read.
func cannotWrite(err error) bool {
	return errors.Is(err, fs.ErrPermission) || readOnlySystem(err)
}

// prepare creates the file if it does not exist, gives an empty one its size, as the
// reference does, and refuses one that is too small: growing somebody's image is nothing
// to do unasked.
func (o *opening) prepare(name string) error {
	size := o.x.FileSize
	info, err := o.p.env.open.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !o.x.ReadOnly:
		return o.create(name)
	case err != nil || !info.Mode().IsRegular() || info.Size() >= size:
		return err
	case info.Size() == 0 && !o.x.ReadOnly:
		return o.fill(name)
	}
	return fmt.Errorf("%s has %d bytes, fewer than the filesize of %d; make it larger (truncate -s %d), or filesize smaller", name, info.Size(), size, size)
}

// prepareParts is prepare for the files of a multifile.
func (o *opening) prepareParts(name string, create bool) error {
	if o.x.FileSize == 0 {
		return nil
	}
	sum := int64(0)
	for i := 0; ; i++ {
		info, err := o.p.env.open.Stat(fmt.Sprintf("%s.%d", name, i))
		if errors.Is(err, fs.ErrNotExist) {
			if i == 0 && create && !o.x.ReadOnly {
				return o.create(name + ".0")
			}
			break
		}
		if err != nil || !info.Mode().IsRegular() {
			return nil // whoever opens it knows more
		}
		sum += info.Size()
	}
	if sum > 0 && sum < o.x.FileSize {
		return fmt.Errorf("%s.0 and those that follow it have %d bytes, fewer than the filesize of %d; add another one, or make filesize smaller", name, sum, o.x.FileSize)
	}
	return nil
}

// create makes a file of filesize bytes.
func (o *opening) create(name string) error {
	size := o.x.FileSize
	f, err := o.p.env.open.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return o.fill(name) // a client that came at the same time was faster
	}
	if err != nil {
		return fmt.Errorf("create the file: %w", err)
	}
	if err := errors.Join(enlarge(f, size), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("create %s with %d bytes: %w", name, size, err), o.p.env.open.Remove(name))
	}
	o.p.log.Info("created the file", "export", o.x.Name, "file", name, "bytes", size)
	return nil
}

// fill gives a file of filesize bytes to a name that has an empty one.
func (o *opening) fill(name string) (err error) {
	f, err := o.p.env.open.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("give the empty file the size that filesize says: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil || info.Size() > 0 { // by now
		return err
	}
	o.p.log.Info("the file is empty, it is given its size", "export", o.x.Name, "file", name, "bytes", o.x.FileSize)
	return enlarge(f, o.x.FileSize)
}

// enlarge gives an empty file its size, of holes where the file system has them.
func enlarge(f *os.File, size int64) error {
	sparse.Prepare(f)
	return f.Truncate(size)
}

// temporary makes an empty file of size bytes in the folder of template.
func temporary(o opener.Opener, template string, size int64) (*os.File, error) {
	dir, base := filepath.Split(template)
	f, err := nameless(o, dir, strings.TrimRight(base, "X")+"*")
	if err != nil {
		return nil, err
	}
	if err := enlarge(f, size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// nameless makes a new file whose name is gone at once, or, where the system
// cannot do that, when the file is closed. The last * in pattern stands for what
// makes the name new.
func nameless(o opener.Opener, dir, pattern string) (*os.File, error) {
	before, after := pattern, ""
	if i := strings.LastIndexByte(pattern, '*'); i >= 0 {
		before, after = pattern[:i], pattern[i+1:]
	}
	for try := 0; ; try++ {
		name := filepath.Join(dir, before+rand.Text()[:10]+after)
		f, err := o.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|deleteOnClose, 0o600)
		if errors.Is(err, fs.ErrExist) && try < 100 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("make a temporary file: %w", err)
		}
		if deleteOnClose == 0 {
			if err := o.Remove(name); err != nil {
				return nil, errors.Join(fmt.Errorf("take the name from a temporary file: %w", err), f.Close())
			}
		}
		return f, nil
	}
}
