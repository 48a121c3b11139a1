package partition_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/layer/partition"
)

// failing is a disk that cannot be read.
type failing struct{ err error }

func (f failing) Caps() block.Caps                            { return block.Caps{Size: 1 << 20} }
func (f failing) ReadAt(context.Context, []byte, int64) error { return f.err }
func (f failing) Close() error                                { return nil }

// TestConformance runs the suite over a partition that lies between others.
func TestConformance(t *testing.T) {
	var disk *blocktest.Disk
	const first = 34
	again := func(testing.TB) (block.Backend, error) {
		next, err := block.New(disk.Open())
		if err != nil {
			return nil, err
		}
		return partition.Layer(partition.Config{Number: 2})(next)
	}
	blocktest.Run(t, blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			size = max(size/512, 1)
			disk = blocktest.NewDisk(t, blocktest.FullCaps((first+1+size+100)*512))
			disk.Load(mbr(mbrEntry{0x83, 1, first - 1}, mbrEntry{0x83, first, uint32(size)}, mbrEntry{0x83, first + uint32(size), 100}), 0)
			return again(t)
		},
		AnySize: true,
		Reopen:  again,
		Cut:     func(testing.TB) { disk.Cut() },
		Steps:   400,
	})
}

// open opens a partition of a disk.
func open(d *block.Device, number int) (block.Backend, error) {
	return partition.Layer(partition.Config{Number: number})(d)
}

// TestRange wants the bytes of the partition, and of no other.
func TestRange(t *testing.T) {
	image := logicalDisk()
	for i := range 200 {
		if i != 0 && i != 50 && i != 60 && i != 90 {
			copy(image[i*512:], bytes.Repeat([]byte{byte(i)}, 512))
		}
	}
	d := device(t, image, 0)
	b, err := open(d, 6)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 18*512)
	if err := b.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, image[62*512:80*512]) {
		t.Errorf("partition 6 begins with %d, %v; want 62", p[0], err)
	}
	if n := b.Caps().Size; n != int64(len(p)) {
		t.Errorf("%d bytes, want %d", n, len(p))
	}
}

// TestMissing wants to be told what there is.
func TestMissing(t *testing.T) {
	var many []gptEntry
	for range 100 {
		many = append(many, gptEntry{40, 41, "of many"})
	}
	for _, x := range []struct {
		image  []byte
		number int
		want   string
	}{
		{logicalDisk(), 2, `there is no partition 2; the MBR has 1 (5120 bytes at 1024), 3 (extended), 4 (25600 bytes at 76800), 5 (`},
		{logicalDisk(), 3, "partition 3 is an extended one"},
		{logicalDisk(), -1, "there is no partition -1"},
		{mbr(), 1, "there is no partition 1; the MBR has none"},
		{mbr(mbrEntry{0x83, 1, 10}), 1, "partition 1 has 5120 bytes at 512, and the disk ends at 512"},
		{gpt(200, 512, gptEntry{40, 49, "boot"}), 9, `the GPT has 1 (5120 bytes at 20480, "boot")`},
		{gpt(200, 512, many...), 101, "of many\") and 84 more"},
	} {
		_, err := open(device(t, x.image, 0), x.number)
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%d: %v; want something with %q", x.number, err, x.want)
		}
	}
	if _, err := open(device(t, make([]byte, 4096), 0), 1); err == nil || errors.Is(err, block.ErrRange) {
		t.Errorf("no table: %v", err)
	}
}

// TestSfdisk reads tables that another program has written, and wants what that
// program reads.
func TestSfdisk(t *testing.T) {
	testgate.Requires(t, testgate.Program("sfdisk"))
	for name, x := range map[string]struct{ script, want string }{
		"MBR": {
			"label: dos\nstart=2048,size=4096,type=83\nstart=8192,size=32768,type=f\nstart=10240,size=2048,type=83\nstart=14336,size=6144,type=82\nstart=24576,size=16384,type=7\n",
			"MBR 512, 1: 2048+4096, 2: 8192+32768 extended, 5: 10240+2048, 6: 14336+6144, 7: 24576+16384",
		},
		"GPT": {
			"label: gpt\n1: start=2048,size=4096,name=first\n7: start=8192,size=8192,name=\"seventh, with Ω\"\n",
			"GPT 512, 1: 2048+4096 first, 7: 8192+8192 seventh, with Ω",
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, 64<<20); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(testgate.Find("sfdisk"), "-q", path)
			cmd.Stdin = strings.NewReader(x.script)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			f, err := file.Open(file.Config{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			d, err := block.New(f)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			table, err := partition.Read(t.Context(), d, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(table); got != x.want {
				t.Errorf("got  %s\nwant %s", got, x.want)
			}
			if name != "GPT" {
				return
			}
			if err := d.WriteAt(t.Context(), make([]byte, 512), 512, 0); err != nil {
				t.Fatal(err)
			}
			table, err = partition.Read(t.Context(), d, 0)
			if err != nil || !table.Backup || len(table.Partitions) != 2 {
				t.Errorf("without the first header: %+v, %v", table, err)
			}
		})
	}
}

func Example() {
	memory, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	disk, err := block.New(memory)
	if err != nil {
		fmt.Println(err)
		return
	}
	table := make([]byte, 512) // with one entry, of 100 sectors from the 64th on
	copy(table[446:], "\x00\x00\x00\x00\x83\x00\x00\x00\x40\x00\x00\x00\x64\x00\x00\x00")
	copy(table[510:], "\x55\xaa")
	if err := disk.WriteAt(context.Background(), table, 0, 0); err != nil {
		fmt.Println(err)
		return
	}
	part, err := partition.Layer(partition.Config{Number: 1})(disk)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer part.Close()
	fmt.Println(part.Caps().Size)
	// Output: 51200
}
