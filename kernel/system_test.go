package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"nbd.example/nbd/kernel"
)

// tree makes files below a new folder: names with a slash at the end are folders, names
// with an arrow are links.
func tree(t *testing.T, files map[string]string) kernel.System {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		var err error
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		case strings.HasPrefix(text, "-> "):
			if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
				err = os.Symlink(text[3:], path)
			}
		default:
			if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
				err = os.WriteFile(path, []byte(text), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return kernel.System{Root: root}
}

// attached is the tree of a machine with one device that is attached and much used.
var attached = map[string]string{
	"sys/module/nbd/":                              "",
	"sys/block/nbd0/dev":                           "43:0\n",
	"sys/block/nbd0/size":                          "0\n",
	"sys/block/nbd0/ro":                            "0\n",
	"sys/block/nbd0/inflight":                      "       0        0\n",
	"sys/block/nbd0/queue/logical_block_size":      "512\n",
	"sys/block/nbd12/dev":                          "43:384\n",
	"sys/block/nbd12/size":                         "2048\n",
	"sys/block/nbd12/ro":                           "1\n",
	"sys/block/nbd12/pid":                          "4242\n",
	"sys/block/nbd12/backend":                      "nbd://host/disk with spaces\n",
	"sys/block/nbd12/inflight":                     "       3       17\n",
	"sys/block/nbd12/queue/logical_block_size":     "4096\n",
	"sys/block/nbd12/holders/dm-1":                 "-> ../../dm-1",
	"sys/block/nbd12/nbd12p1/partition":            "1\n",
	"sys/block/nbd12/nbd12p1/dev":                  "43:385\n",
	"sys/block/nbd12/nbd12p2/partition":            "2\n",
	"sys/block/nbd12/nbd12p2/dev":                  "43:386\n",
	"sys/block/nbd12/nbd12p2/holders/dm-0":         "-> ../../dm-0",
	"sys/block/nbd12/nbd12p10/partition":           "10\n",
	"sys/block/nbd12/nbd12p10/dev":                 "43:394\n",
	"sys/block/loop0/size":                         "8\n",
	"dev/nbd12":                                    "",
	"proc/4242/status":                             "Name:\tnbd-client\nTgid:\t4240\nPid:\t4242\n",
	"proc/4240/comm":                               "nbd-client\n",
	"proc/4240/fd/5":                               "-> socket:[77]",
	"proc/77/comm":                                 "dd\n",
	"proc/77/fd/0":                                 "-> /dev/nbd12p2",
	"proc/77/fd/1":                                 "-> /dev/nbd12",
	"proc/78/comm":                                 "other\n",
	"proc/78/fd/0":                                 "-> /dev/nbd1",
	"proc/78/fd/1":                                 "-> /dev/nbd123",
	"proc/78/fd/2":                                 "-> /dev/nbd12px",
	"proc/swaps":                                   "Filename\tType\tSize\n/dev/nbd12p10                           partition\t1\t0\t-2\n",
	"proc/self/mountinfo":                          mounts,
	"proc/uptime":                                  "1 2\n",
	"sys/devices/virtual/block/nothing/of/concern": "",
}

const mounts = `22 1 0:20 / /proc rw,nosuid - proc proc rw
36 22 43:386 / /mnt/a\040b rw,noatime shared:1 - ext4 /dev/nbd12p2 rw
37 22 0:44 / /mnt/btrfs rw - btrfs /dev/nbd12p1 rw,space_cache
38 22 43:0 / /mnt/other rw - ext4 /dev/nbd0 rw
39 22 8:1 / /mnt/1 rw - ext4 /dev/nbd123 rw
broken
40 22 43:385 - ext4
`

func links(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs names and links as Linux has them")
	}
}

func TestInfo(t *testing.T) {
	links(t)
	s := tree(t, attached)
	info, err := s.Info(12)
	if err != nil {
		t.Fatal(err)
	}
	want := &kernel.Info{
		Index: 12, Size: 1 << 20, BlockSize: 4096, ReadOnly: true, PID: 4240,
		Identifier: "nbd://host/disk with spaces", Reads: 3, Writes: 17, Swap: true, Node: true,
		Partitions: []string{"nbd12p1", "nbd12p2", "nbd12p10"},
		Holders:    []string{"dm-1", "dm-0"},
		Mounts:     []string{"/mnt/a b", "/mnt/btrfs"},
	}
	if !reflect.DeepEqual(info, want) {
		t.Errorf("got  %+v\nwant %+v", info, want)
	}
	s.AddOpeners(info)
	if want := []kernel.Opener{{PID: 77, Command: "dd"}}; !reflect.DeepEqual(info.Openers, want) {
		t.Errorf("openers %+v, want %+v", info.Openers, want)
	}
	const users = "mounted on /mnt/a b, mounted on /mnt/btrfs, used as swap space, held by dm-1, held by dm-0, open in process 77 (dd)"
	if got := info.Users(); got != users {
		t.Errorf("users %q\nwant  %q", got, users)
	}
	if info.Gone() || !info.Ready() {
		t.Errorf("gone %t, ready %t", info.Gone(), info.Ready())
	}
	info, err = s.Info(0)
	if err != nil || !info.Gone() || info.Ready() || info.Node || info.BlockSize != 512 {
		t.Errorf("a device that is not attached: %+v, %v", info, err)
	}
	if _, err := s.Info(1); !errors.Is(err, kernel.ErrNoDevice) {
		t.Errorf("a device that is not there: %v", err)
	}
	if _, err := tree(t, nil).Info(1); !errors.Is(err, kernel.ErrNoModule) {
		t.Errorf("without the driver: %v", err)
	}
}

// TestInfoUnknown: what cannot be read, because memory or descriptors are short, does not
// count as what is not there. Else whoever keeps the device would give it up.
func TestInfoUnknown(t *testing.T) {
	links(t)
	const dir = "sys/block/nbd12/"
	for _, name := range []string{
		dir + "pid", dir + "size", dir + "backend", dir + "ro", dir + "dev", dir + "inflight", dir + "queue/max_sectors_kb",
		"proc/4242/status", "proc/self/mountinfo", "proc/swaps",
	} {
		files := maps.Clone(attached)
		delete(files, name)
		files[name+"/"] = "" // a folder can be opened, and not be read
		if info, err := tree(t, files).Info(12); err == nil || info != nil || errors.Is(err, kernel.ErrNoDevice) {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}

// TestInfoLongLine: what somebody else mounts, with more to say of it than anybody reads,
// keeps nobody from his device.
func TestInfoLongLine(t *testing.T) {
	links(t)
	files := maps.Clone(attached)
	files["proc/self/mountinfo"] = "99 1 0:77 / /x rw - overlay overlay rw,lowerdir=" + strings.Repeat("/a", 1<<19) + "\n" + files["proc/self/mountinfo"]
	want, err := tree(t, attached).Info(12)
	if err != nil || len(want.Mounts) == 0 {
		t.Fatal(want, err)
	}
	if info, err := tree(t, files).Info(12); err != nil || !slices.Equal(info.Mounts, want.Mounts) {
		t.Errorf("%+v, %v", info, err)
	}
}

// unknown is a driver that cannot look at devices, and ends a context at the third look.
type unknown struct {
	kernel.Driver
	looks int
	end   func()
}

func (u *unknown) Info(kernel.Index) (*kernel.Info, error) {
	if u.looks++; u.looks == 3 {
		u.end()
	}
	return nil, syscall.EMFILE
}

// TestAwaitGoneUnknown: a device that nobody can look at is not known to be gone.
func TestAwaitGoneUnknown(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	u := &unknown{end: cancel}
	if info, err := kernel.AwaitGone(ctx, u, 0); info != nil || !errors.Is(err, syscall.EMFILE) || u.looks < 3 {
		t.Errorf("after %d looks: %+v, %v", u.looks, info, err)
	}
}

// limiter is a driver that can do no more than the system.
type limiter struct {
	kernel.Driver
	system kernel.System
}

func (l limiter) Info(i kernel.Index) (*kernel.Info, error) { return l.system.Info(i) }
func (l limiter) LimitRequests(ctx context.Context, i kernel.Index, most int64) error {
	return l.system.LimitRequests(ctx, i, most)
}

func TestSuitRequests(t *testing.T) {
	links(t)
	const name = "sys/block/nbd12/queue/max_sectors_kb"
	for _, c := range []struct {
		most        uint32
		now, before int64
		written     string // over the 1280 that was there
	}{
		{0, 1280 << 10, 0, "1280\n"},
		{1280 << 10, 1280 << 10, 0, "1280\n"},
		{1280<<10 - 1, 1276 << 10, 1280 << 10, "1276\n"},
		{1_000_000, 976 << 10, 1280 << 10, "9760\n"},
	} {
		files := maps.Clone(attached)
		files[name] = "1280\n"
		s := tree(t, files)
		now, before, err := kernel.SuitRequests(t.Context(), limiter{system: s}, 12, c.most)
		written, failed := os.ReadFile(filepath.Join(s.Root, name))
		if now != c.now || before != c.before || err != nil || failed != nil || string(written) != c.written {
			t.Errorf("%d: %d, before %d, %v; written %q, %v", c.most, now, before, err, written, failed)
		}
	}
	s := tree(t, attached)
	if err := s.LimitRequests(t.Context(), 12, 4096); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the attribute: %v", err)
	}
	if now, before, err := kernel.SuitRequests(t.Context(), limiter{system: s}, 77, 4096); now != 0 || before != 0 || err != nil {
		t.Errorf("without the device: %d, %d, %v", now, before, err)
	}
}

func TestDevices(t *testing.T) {
	s := tree(t, map[string]string{
		"sys/block/nbd10/": "", "sys/block/nbd2/": "", "sys/block/nbd/": "", "sys/block/nbd01/": "",
		"sys/block/loop0/": "", "sys/block/nbdx/": "", "sys/block/nb3/": "",
	})
	list, err := s.Devices()
	if err != nil || !slices.Equal(list, []kernel.Index{2, 10}) {
		t.Errorf("got %v, %v", list, err)
	}
	if list, err := tree(t, nil).Devices(); err != nil || len(list) != 0 {
		t.Errorf("without sysfs: %v, %v", list, err)
	}
}

// TestRubbish wants attributes that hold something else to be taken for nothing.
func TestRubbish(t *testing.T) {
	for _, text := range []string{"", "x\n", "-5\n", "99999999999999999999\n", "18014398509481985\n"} {
		s := tree(t, map[string]string{
			"sys/block/nbd0/size": text, "sys/block/nbd0/pid": text, "sys/block/nbd0/inflight": text,
			"sys/block/nbd0/ro": text, "proc/self/mountinfo": text, "proc/swaps": text,
		})
		info, err := s.Info(0)
		if err != nil || !reflect.DeepEqual(info, &kernel.Info{}) {
			t.Errorf("%q: %+v, %v", text, info, err)
		}
	}
}

func TestRescan(t *testing.T) {
	s := tree(t, map[string]string{"dev/nbd0": ""})
	if err := s.Rescan(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if err := s.Rescan(t.Context(), 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a node: %v", err)
	}
}

func TestParseIndex(t *testing.T) {
	for name, want := range map[string]kernel.Index{
		"/dev/nbd0": 0, "nbd15": 15, "/dev/nb3": 3, "nb3": 3, "/dev/nbd/7": 7, "nbd1048575": 1048575,
	} {
		if i, err := kernel.ParseIndex(name); err != nil || i != want {
			t.Errorf("%s: %d, %v", name, i, err)
		}
	}
	for _, name := range []string{"", "nbd", "/dev/nbd0p1", "nbd01", "nbd-1", "nbd+1", "/dev/sda", "nbd1048576", "/dev/dev/nbd0", "nbd 1"} {
		if i, err := kernel.ParseIndex(name); err == nil {
			t.Errorf("%q is nbd%d", name, i)
		}
	}
}

func FuzzParseIndex(f *testing.F) {
	for _, s := range []string{"/dev/nbd0", "nbd15", "/dev/nb3", "nbd0p1", "nbd1048576"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		i, err := kernel.ParseIndex(s)
		if err != nil {
			return
		}
		if again, err := kernel.ParseIndex(i.Path()); err != nil || again != i {
			t.Errorf("%q is %d, whose path is %d, %v", s, i, again, err)
		}
	})
}

// FuzzTables reads tables of the system with anything in them.
func FuzzTables(f *testing.F) {
	f.Add(mounts, "/dev/nbd0 partition\n", "       1       2\n", "12\n")
	f.Add(`36 22 43:0 / \ - x \0`, `\04`, "1", "-")
	f.Fuzz(func(t *testing.T, mountinfo, swaps, inflight, pid string) {
		s := tree(t, map[string]string{
			"sys/block/nbd0/inflight": inflight, "sys/block/nbd0/pid": pid,
			"proc/self/mountinfo": mountinfo, "proc/swaps": swaps,
		})
		info, err := s.Info(0)
		if err != nil {
			t.Fatal(err)
		}
		if info.PID < 0 {
			t.Errorf("process %d", info.PID)
		}
		_ = info.Users()
	})
}

// ExampleSystem_Devices lists the devices that are attached.
func ExampleSystem_Devices() {
	var s kernel.System
	devices, err := s.Devices()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, i := range devices {
		if info, err := s.Info(i); err == nil && info.PID != 0 {
			fmt.Println(i.Path(), info.Size, info.Identifier)
		}
	}
}

// TestLoadModule tries to load the driver on a machine that does not want to.
func TestLoadModule(t *testing.T) {
	if _, err := os.Stat("/sys/module/nbd"); err == nil {
		if err := kernel.LoadModule(t.Context()); err != nil {
			t.Errorf("it is loaded, but: %v", err)
		}
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that modprobe does not run
	err := kernel.LoadModule(ctx)
	if !errors.Is(err, kernel.ErrNoModule) || !strings.Contains(err.Error(), "modprobe nbd") {
		t.Errorf("got %v", err)
	}
}
