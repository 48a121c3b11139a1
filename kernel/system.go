package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// System is where the kernel shows what it knows: /sys, /proc and /dev. It needs no
// driver and no rights, so it answers also while the driver hangs. The zero value is
// this machine.
type System struct {
	// Root is the folder that holds sys, proc and dev; "" means /. Tests make their own.
	Root string
}

// path returns the path of a name below the root.
func (s System) path(name ...string) string {
	root := s.Root
	if root == "" {
		root = "/"
	}
	return filepath.Join(append([]string{root}, name...)...)
}

// block returns the path of a device's folder in sysfs.
func (s System) block(i Index) string { return s.path("sys/block", i.Name()) }

// Node returns the path of the device's node.
func (s System) Node(i Index) string { return s.path(i.Path()) }

// Loaded reports whether the kernel has the NBD driver.
func (s System) Loaded() bool {
	_, err := os.Stat(s.path("sys/module/nbd"))
	return err == nil
}

// Devices lists the kernel devices that exist, attached or not, by their index.
func (s System) Devices() ([]Index, error) {
	entries, err := os.ReadDir(s.path("sys/block"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list kernel devices: %w", err)
	}
	var list []Index
	for _, e := range entries {
		if digits, ok := strings.CutPrefix(e.Name(), "nbd"); ok {
			if i, err := ParseIndex(e.Name()); err == nil && i.Name() == "nbd"+digits {
				list = append(list, i)
			}
		}
	}
	slices.Sort(list)
	return list, nil
}

// Info returns what the system tells of a device, without its openers: see
// [System.AddOpeners]. The error wraps [ErrNoModule] or [ErrNoDevice]; with any other one,
// such as that no file can be opened, nothing is known of the device.
func (s System) Info(i Index) (*Info, error) {
	dir := s.block(i)
	if _, err := os.Stat(dir); err != nil {
		switch {
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%s: %w", i.Name(), err)
		case !s.Loaded():
			return nil, fmt.Errorf("%s: %w", i.Name(), ErrNoModule)
		}
		return nil, fmt.Errorf("%s: %w", i.Name(), ErrNoDevice)
	}
	r := &reader{system: s}
	info := &Info{
		Index: i,
		// Counted in sectors, whatever the block size is.
		Size:       r.number(filepath.Join(dir, "size")) * SectorSize,
		BlockSize:  r.number(filepath.Join(dir, "queue/logical_block_size")),
		ReadOnly:   r.number(filepath.Join(dir, "ro")) != 0,
		PID:        r.process(int(r.number(filepath.Join(dir, "pid")))),
		Identifier: r.text(filepath.Join(dir, "backend")),
		MaxRequest: r.number(filepath.Join(dir, "queue/max_sectors_kb")) << 10,
	}
	if f := strings.Fields(r.text(filepath.Join(dir, "inflight"))); len(f) == 2 {
		info.Reads, _ = strconv.Atoi(f[0])
		info.Writes, _ = strconv.Atoi(f[1])
	}
	if _, err := os.Stat(s.Node(i)); err == nil {
		info.Node = true
	}
	r.addParts(info, dir)
	r.addMounts(info, dir)
	r.addSwap(info)
	if r.err != nil {
		return nil, fmt.Errorf("%s: %w", i.Name(), r.err)
	}
	return info, nil
}

// reader reads what the system shows, and keeps the first error. That something is not there
// is none: attributes come and go with attachments.
type reader struct {
	system System
	err    error
}

// note keeps an error.
func (r *reader) note(err error) {
	absent := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ESRCH)
	if r.err == nil && !absent {
		r.err = err
	}
}

// text returns the contents of an attribute of sysfs without the end of its line, "" if
// there is none.
func (r *reader) text(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		r.note(err)
		return ""
	}
	return strings.TrimSuffix(string(b), "\n")
}

// number returns an attribute as a number, 0 if there is none.
func (r *reader) number(path string) int64 {
	n, err := strconv.ParseInt(r.text(path), 10, 64)
	if err != nil || n < 0 || n > 1<<54 { // sectors of 512 bytes: more cannot be
		return 0
	}
	return n
}

// folder returns the names in a folder, none if there is none.
func (r *reader) folder(path string) []os.DirEntry {
	list, err := os.ReadDir(path)
	r.note(err)
	return list
}

// process returns the process that a thread belongs to: the driver shows threads. Of one
// that has ended it returns the thread.
func (r *reader) process(thread int) int {
	if thread == 0 {
		return 0
	}
	process := thread
	r.lines(filepath.Join("proc", strconv.Itoa(thread), "status"), func(line string) {
		if rest, ok := strings.CutPrefix(line, "Tgid:"); ok {
			if n, err := strconv.Atoi(strings.TrimSpace(rest)); err == nil && n > 0 {
				process = n
			}
		}
	})
	return process
}

// addParts adds partitions, and the holders of the device and of them.
func (r *reader) addParts(info *Info, dir string) {
	for _, e := range r.folder(dir) {
		if !e.IsDir() {
			continue
		}
		_, err := os.Stat(filepath.Join(dir, e.Name(), "partition"))
		if r.note(err); err == nil {
			info.Partitions = append(info.Partitions, e.Name())
		}
	}
	// By their numbers: p10 comes after p2.
	slices.SortFunc(info.Partitions, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	for _, name := range append([]string{"."}, info.Partitions...) {
		for _, h := range r.folder(filepath.Join(dir, name, "holders")) {
			if !slices.Contains(info.Holders, h.Name()) {
				info.Holders = append(info.Holders, h.Name())
			}
		}
	}
}

// names reports whether path is the node of the device or of one of its partitions.
func (info *Info) names(path string) bool {
	rest, ok := strings.CutPrefix(path, info.Index.Path())
	if !ok || rest == "" {
		return ok
	}
	digits, ok := strings.CutPrefix(rest, "p")
	_, err := strconv.ParseUint(digits, 10, 16)
	return ok && err == nil
}

// addMounts adds where the device or a partition is mounted.
func (r *reader) addMounts(info *Info, dir string) {
	numbers := []string{r.text(filepath.Join(dir, "dev"))}
	for _, p := range info.Partitions {
		numbers = append(numbers, r.text(filepath.Join(dir, p, "dev")))
	}
	r.lines("proc/self/mountinfo", func(line string) {
		// 36 35 43:0 / /mnt rw,noatime shared:1 - ext4 /dev/nbd0 rw
		head, tail, _ := strings.Cut(line, " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if len(h) < 5 || len(t) < 2 {
			return
		}
		// Some file systems, btrfs for one, have a number of their own.
		if slices.Contains(numbers, h[2]) || info.names(unescape(t[1])) {
			info.Mounts = append(info.Mounts, unescape(h[4]))
		}
	})
}

// addSwap looks whether the device or a partition is swapped on.
func (r *reader) addSwap(info *Info) {
	r.lines("proc/swaps", func(line string) {
		if f := strings.Fields(line); len(f) > 0 && info.names(unescape(f[0])) {
			info.Swap = true
		}
	})
}

// lines calls f with each line of a file below the root, if there is one that this process
// may read: what /proc shows is not the same for all.
func (r *reader) lines(name string, f func(string)) {
	file, err := os.Open(r.system.path(name))
	if errors.Is(err, fs.ErrPermission) {
		return
	}
	if err != nil {
		r.note(err)
		return
	}
	defer file.Close()
	in := bufio.NewReaderSize(file, mostLine)
	for {
		line, more, err := in.ReadLine()
		for skip := more; skip && err == nil; { // no line of ours
			_, skip, err = in.ReadLine()
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			r.note(err)
			return
		}
		if !more {
			f(string(line))
		}
	}
}

// mostLine bounds a line that is looked at, in bytes: others mount what they want.
const mostLine = 64 << 10

// unescape undoes what the kernel does to spaces in paths: \040.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// AddOpeners looks through all processes for those that have the device or a partition
// open, and sets info.Openers. Processes of others show only to root. The kernel's own
// users, mounts and swap, are not among them.
func (s System) AddOpeners(info *Info) {
	info.Openers = []Opener{}
	processes, _ := os.ReadDir(s.path("proc"))
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := s.path("proc", p.Name())
		files, _ := os.ReadDir(filepath.Join(dir, "fd"))
		for _, f := range files {
			target, err := os.Readlink(filepath.Join(dir, "fd", f.Name()))
			if err == nil && info.names(target) {
				info.Openers = append(info.Openers, Opener{PID: pid, Command: new(reader).text(filepath.Join(dir, "comm"))})
				break
			}
		}
	}
}

// Users says who holds a device, for people: mounts, swap, block devices on top, and
// what AddOpeners and Claim have found. "" if nobody is known to.
func (info *Info) Users() string {
	var list []string
	for _, m := range info.Mounts {
		list = append(list, "mounted on "+m)
	}
	if info.Swap {
		list = append(list, "used as swap space")
	}
	for _, h := range info.Holders {
		list = append(list, "held by "+h)
	}
	if info.Claimed && list == nil {
		list = append(list, "held by somebody whom this process does not see, such as a mount in another mount namespace")
	}
	for _, o := range info.Openers {
		list = append(list, fmt.Sprintf("open in process %d (%s)", o.PID, o.Command))
	}
	return strings.Join(list, ", ")
}
