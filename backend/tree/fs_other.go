//go:build !linux

package tree

import (
	"errors"
	"os"
)

// syncsAll says that there is syncAll.
const syncsAll = false

func (s *system) syncAll() error { return errors.ErrUnsupported }

// mounts is for systems that have syncAll.
type mounts struct{}

func (s *system) note(*os.File) error { return nil }
func (m *mounts) close() error        { return nil }

// now is what is known of how to answer without waiting: nothing.
type now struct{}

func (s *system) findNow() {}

// OpenFile implements FS.
func (s *system) OpenFile(name string, flag int) (File, error) {
	f, err := s.config.Open(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// OpenNow implements FS.
func (s *system) OpenNow(string, int) File { return nil }

// osFile is a file of the system.
type osFile struct{ *os.File }

// ReadNow implements File.
func (osFile) ReadNow([]byte, int64) bool { return false }

// WriteNow implements File.
func (osFile) WriteNow([]byte, int64) bool { return false }

// Size implements File.
func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// mostOpen returns how many files the process may open, as far as is known.
func mostOpen() int { return 2048 }
