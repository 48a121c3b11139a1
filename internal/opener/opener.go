// Package opener is the one door through which a server opens files after it
// has started: configuration, keys, lists of addresses, images, diffs.
//
// Everything that wants a file is handed an [Opener] and asks it. So a server can
// be given another one, which asks a privileged helper, or which knows only what
// was opened before the process was locked in.
package opener

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Opener opens files. Its methods may be called concurrently. Names that are
// not absolute are relative to where the program was started, also after it has
// changed its working directory.
type Opener interface {
	// OpenFile is os.OpenFile.
	OpenFile(name string, flag int, perm fs.FileMode) (*os.File, error)
	// ReadDir is os.ReadDir: sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Stat is os.Stat.
	Stat(name string) (fs.FileInfo, error)
	// Remove is os.Remove.
	Remove(name string) error
	// Rename is os.Rename.
	Rename(old, name string) error
	// Abs returns the absolute form of name.
	Abs(name string) string
}

// OS opens the files of the system. Dir is where the program was started; ""
// stands for the working directory at each call.
type OS struct{ Dir string }

var _ Opener = OS{}

// Here returns an OS for the working directory of this moment.
func Here() OS {
	dir, err := os.Getwd()
	if err != nil {
		dir = "" // Removed below our feet. Absolute names still work.
	}
	return OS{Dir: dir}
}

// Abs returns the absolute form of name.
func (o OS) Abs(name string) string {
	if filepath.IsAbs(name) || o.Dir == "" || name == "" {
		return name
	}
	return filepath.Join(o.Dir, name)
}

// OpenFile opens name as os.OpenFile does.
func (o OS) OpenFile(name string, flag int, perm fs.FileMode) (*os.File, error) {
	return os.OpenFile(o.Abs(name), flag, perm)
}

// ReadDir lists a folder, sorted by name.
func (o OS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(o.Abs(name)) }

// Stat describes name.
func (o OS) Stat(name string) (fs.FileInfo, error) { return os.Stat(o.Abs(name)) }

// Remove removes name.
func (o OS) Remove(name string) error { return os.Remove(o.Abs(name)) }

// Rename gives a file another name.
func (o OS) Rename(old, name string) error { return os.Rename(o.Abs(old), o.Abs(name)) }

// ReadFile reads all of a small file, and fails on one with more than limit bytes.
func ReadFile(o Opener, name string, limit int64) ([]byte, error) {
	f, err := o.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errTooLong}
	}
	return b, nil
}

type tooLong struct{}

func (tooLong) Error() string { return "the file is too long to be what it should be" }

var errTooLong error = tooLong{}
