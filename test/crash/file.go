package crash

import (
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// File is an open file.
type File struct {
	w    *World
	i    int
	name string
}

// ReadAt fills p from off, or returns io.EOF.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	n := max(0, min(int64(len(p)), f.w.size(f.i)-off))
	f.w.read(f.i, p[:n], off)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// WriteAt writes p at off.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	f.w.write(f.i, p, off, false)
	return len(p), nil
}

// Size returns the size in bytes.
func (f *File) Size() (int64, error) { return f.w.size(f.i), nil }

// Truncate sets the size.
func (f *File) Truncate(size int64) error {
	f.w.truncate(f.i, size)
	return nil
}

// Punch makes a hole. The size stays.
func (f *File) Punch(off, n int64) error {
	f.w.zero(f.i, off, n, false)
	return nil
}

// Sync makes the contents stable, not the name.
func (f *File) Sync() error {
	f.w.sync(f.i)
	return nil
}

// Close does nothing.
func (f *File) Close() error { return nil }

func fail(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// OpenFile opens a file by its path, like os.OpenFile; of the flags it knows
// os.O_CREATE, os.O_EXCL and os.O_TRUNC.
func (w *World) OpenFile(name string, flag int) (*File, error) {
	w.mu.Lock()
	name = clean(name)
	i, ok := w.names[name]
	var err error
	switch {
	case ok && i == folder:
		err = fail("open", name, syscall.EISDIR)
	case ok && flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0:
		err = fail("open", name, fs.ErrExist)
	case !ok && flag&os.O_CREATE == 0, !ok && !w.isFolder(path.Dir(name)):
		err = fail("open", name, fs.ErrNotExist)
	case !ok:
		i = w.newStore()
		w.rename(name, i, false)
	}
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	f := &File{w: w, i: i, name: name}
	if ok && flag&os.O_TRUNC != 0 {
		f.Truncate(0)
	}
	return f, nil
}

// isFolder reports whether a path is that of a folder. w.mu is held.
func (w *World) isFolder(name string) bool {
	i, ok := w.names[name]
	return ok && i == folder
}

// Mkdir makes a folder.
func (w *World) Mkdir(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	name = clean(name)
	if _, ok := w.names[name]; ok {
		return fail("mkdir", name, fs.ErrExist)
	}
	if !w.isFolder(path.Dir(name)) {
		return fail("mkdir", name, fs.ErrNotExist)
	}
	w.rename(name, folder, false)
	return nil
}

// Unlink removes a file or an empty folder.
func (w *World) Unlink(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	name = clean(name)
	if _, ok := w.names[name]; !ok {
		return fail("remove", name, fs.ErrNotExist)
	}
	if len(w.inside(name)) > 0 {
		return fail("remove", name, syscall.ENOTEMPTY)
	}
	w.rename(name, folder, true)
	return nil
}

// ReadDir returns the names in a folder, sorted.
func (w *World) ReadDir(name string) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name = clean(name)
	if !w.isFolder(name) {
		return nil, fail("open", name, fs.ErrNotExist)
	}
	return w.inside(name), nil
}
