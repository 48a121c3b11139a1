package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MakeNode makes the node of a device, and those of its partitions, where the kernel
// did not: in containers and small root file systems without devtmpfs. Those that are
// there are left alone. The nodes belong to root alone.
func (s System) MakeNode(i Index) error {
	info, err := s.Info(i)
	if err != nil {
		return err
	}
	nodes := map[string]string{s.Node(i): s.block(i)}
	for _, p := range info.Partitions {
		nodes[s.path("dev", p)] = filepath.Join(s.block(i), p)
	}
	for node, dir := range nodes {
		var r reader
		var major, minor uint32
		if _, err := fmt.Sscanf(r.text(filepath.Join(dir, "dev")), "%d:%d", &major, &minor); err != nil {
			return fmt.Errorf("make %s: no device number in %s: %w", node, dir, cmp.Or(r.err, err))
		}
		err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor)))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mknod", Path: node, Err: err}
		}
	}
	return nil
}

// SetReadOnly marks a device as read-only for the block layer, or takes the mark away
// (BLKROSET). The mark outlives attachments.
func (s System) SetReadOnly(i Index, on bool) error {
	f, err := os.Open(s.Node(i))
	if err != nil {
		return err
	}
	defer f.Close()
	value := 0
	if on {
		value = 1
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, value); err != nil {
		return fmt.Errorf("set %s read-only (%t): %w", i.Path(), on, err)
	}
	return nil
}
