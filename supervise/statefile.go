package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nbd.example/nbd/kernel"
)

const (
	stateVersion = 1
	// maxState bounds a state file, in bytes.
	maxState = 256 << 10
)

// statePath returns the path of a device's state file.
func statePath(dir string, i kernel.Index) string { return filepath.Join(dir, i.Name()+".json") }

// writeState writes a state file, so that a reader sees the old or the new one. It is
// not synced: it is worth nothing after a restart of the machine, and a sync could wait
// for the very device.
func writeState(dir string, st *State) error {
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	path := statePath(dir, st.Index)
	f, err := os.CreateTemp(dir, "."+st.Index.Name()+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// errNoState says that a file holds nothing of use.
var errNoState = errors.New("this is no state of a device")

// parseState reads what a state file holds. The error wraps errNoState.
func parseState(b []byte) (*State, error) {
	st := &State{}
	if err := json.Unmarshal(b, st); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoState, err)
	}
	switch {
	case st.Version != stateVersion:
		return nil, fmt.Errorf("%w: version %d is not known, only %d", errNoState, st.Version, stateVersion)
	case st.Device != st.Index.Path():
		return nil, fmt.Errorf("%w: %q is not the device of index %d", errNoState, st.Device, st.Index)
	case len(st.Connections) > maxConnections:
		return nil, fmt.Errorf("%w: %d connections, more than %d", errNoState, len(st.Connections), maxConnections)
	}
	return st, nil
}

// readState reads one state file.
func readState(path string) (*State, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err == nil && len(b) > maxState {
		err = fmt.Errorf("%w: longer than %d bytes", errNoState, maxState)
	}
	var st *State
	if err == nil {
		st, err = parseState(b)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return st, nil
}

// States reads the state files in dir, by index, those of dead processes and of devices
// that are no longer attached included. "" means DefaultDir. Files that cannot be read
// are named in the error, see [Unadopted], and the others returned.
func States(dir string) ([]State, error) {
	if dir == "" {
		dir = DefaultDir
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []State
	var failed []error
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		i, err := kernel.ParseIndex(name)
		if !ok || err != nil || strings.HasPrefix(name, ".") {
			continue
		}
		st, err := readState(filepath.Join(dir, e.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone meanwhile
		case err != nil:
			failed = append(failed, &StateError{i, err})
		case st.Index.Name() != name:
			failed = append(failed, &StateError{i, fmt.Errorf("%s: it is of %s", filepath.Join(dir, e.Name()), st.Device)})
		default:
			list = append(list, *st)
		}
	}
	slices.SortFunc(list, func(a, b State) int { return int(a.Index) - int(b.Index) })
	return list, errors.Join(failed...)
}
