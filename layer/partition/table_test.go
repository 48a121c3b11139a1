package partition_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"unicode/utf16"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/partition"
)

var le = binary.LittleEndian

// device is a disk that holds image, and zeroes up to size.
func device(t testing.TB, image []byte, size int64) *block.Device {
	t.Helper()
	size = max(size, int64(len(image)))
	b, err := memory.New(memory.Config{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := d.WriteAt(t.Context(), image, 0, 0); err != nil {
		t.Fatal(err)
	}
	return d
}

type mbrEntry struct {
	kind         byte
	first, count uint32
}

// mbr returns a sector with entries.
func mbr(list ...mbrEntry) []byte {
	p := make([]byte, 512)
	for i, e := range list {
		x := p[446+16*i:]
		x[4] = e.kind
		le.PutUint32(x[8:], e.first)
		le.PutUint32(x[12:], e.count)
	}
	p[510], p[511] = 0x55, 0xaa
	return p
}

type gptEntry struct {
	first, last uint64
	name        string
}

// gptArray returns entries, 128 of 128 bytes.
func gptArray(list []gptEntry) []byte {
	p := make([]byte, 128*128)
	for i, e := range list {
		x := p[i*128:]
		if e.last == 0 {
			continue
		}
		copy(x, "\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4")
		le.PutUint64(x[32:], e.first)
		le.PutUint64(x[40:], e.last)
		for k, u := range utf16.Encode([]rune(e.name)) {
			le.PutUint16(x[56+2*k:], u)
		}
	}
	return p
}

func gptHeader(own, other, entries uint64, array []byte) []byte {
	p := make([]byte, 92)
	copy(p, "EFI PART")
	le.PutUint32(p[8:], 0x10000)
	le.PutUint32(p[12:], 92)
	le.PutUint64(p[24:], own)
	le.PutUint64(p[32:], other)
	le.PutUint64(p[72:], entries)
	le.PutUint32(p[80:], 128)
	le.PutUint32(p[84:], 128)
	le.PutUint32(p[88:], crc32.ChecksumIEEE(array))
	return sum(p)
}

// sum gives a header its checksum.
func sum(p []byte) []byte {
	clear(p[16:20])
	le.PutUint32(p[16:], crc32.ChecksumIEEE(p[:92]))
	return p
}

// gpt returns a disk of n sectors with a GPT and its copy.
func gpt(n, sector int64, list ...gptEntry) []byte {
	p := make([]byte, n*sector)
	array := gptArray(list)
	k := int64(len(array)) / sector
	copy(p, mbr(mbrEntry{0xee, 1, 0xffffffff}))
	copy(p[sector:], gptHeader(1, uint64(n-1), 2, array))
	copy(p[2*sector:], array)
	copy(p[(n-1-k)*sector:], array)
	copy(p[(n-1)*sector:], gptHeader(uint64(n-1), 1, uint64(n-1-k), array))
	return p
}

// logicalDisk returns a disk with two primary partitions and three logical ones.
func logicalDisk() []byte {
	p := make([]byte, 512*200)
	copy(p, mbr(mbrEntry{0x83, 2, 10}, mbrEntry{}, mbrEntry{0x0f, 50, 100}, mbrEntry{0x82, 150, 50}))
	copy(p[512*50:], mbr(mbrEntry{0x83, 1, 9}, mbrEntry{0x05, 10, 20}))
	copy(p[512*60:], mbr(mbrEntry{0x83, 2, 18}, mbrEntry{0x05, 40, 20}))
	copy(p[512*90:], mbr(mbrEntry{0x07, 1, 19}))
	return p
}

// describe returns a table as text.
func describe(t *partition.Table) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d", t.Kind, t.Sector)
	if t.Backup {
		b.WriteString(" backup")
	}
	for _, p := range t.Partitions {
		fmt.Fprintf(&b, ", %d: %d+%d", p.Number, p.Offset/t.Sector, p.Size/t.Sector)
		if p.Extended {
			b.WriteString(" extended")
		}
		if p.Name != "" {
			b.WriteString(" " + p.Name)
		}
	}
	return b.String()
}

func TestTables(t *testing.T) {
	two := []gptEntry{{40, 49, "boot"}, {}, {50, 59, "Wurzel Ω\a"}}
	damaged := func(p []byte, at int64) []byte {
		p = bytes.Clone(p)
		p[at] ^= 1
		return p
	}
	for _, x := range []struct {
		name   string
		image  []byte
		sector int64
		want   string
	}{
		{"primary", mbr(mbrEntry{0x83, 2, 10}, mbrEntry{0x83, 12, 20}), 0, "MBR 512, 1: 2+10, 2: 12+20"},
		{"none", mbr(), 0, "MBR 512"},
		{"sectors of 4096", mbr(mbrEntry{0x83, 2, 10}), 4096, "MBR 4096, 1: 2+10"},
		{"logical", logicalDisk(), 0, "MBR 512, 1: 2+10, 3: 50+100 extended, 4: 150+50, 5: 51+9, 6: 62+18, 7: 91+19"},
		{"empty extended", append(mbr(mbrEntry{0x05, 1, 10}), make([]byte, 5120)...), 0, "MBR 512, 1: 1+10 extended"},
		{"GPT", gpt(200, 512, two...), 0, "GPT 512, 1: 40+10 boot, 3: 50+10 Wurzel Ω"},
		{"GPT 4096", gpt(100, 4096, two...), 0, "GPT 4096, 1: 40+10 boot, 3: 50+10 Wurzel Ω"},
		{"GPT, header damaged", damaged(gpt(200, 512, two...), 512+24), 0, "GPT 512 backup, 1: 40+10 boot, 3: 50+10 Wurzel Ω"},
		{"GPT, entries damaged", damaged(gpt(200, 512, two...), 1024+33), 0, "GPT 512 backup, 1: 40+10 boot, 3: 50+10 Wurzel Ω"},
		{"GPT, signature damaged", damaged(gpt(100, 4096, two...), 4096), 0, "GPT 4096 backup, 1: 40+10 boot, 3: 50+10 Wurzel Ω"},
		{"GPT, copy damaged", damaged(gpt(200, 512, two...), 199*512), 0, "GPT 512, 1: 40+10 boot, 3: 50+10 Wurzel Ω"},
		{"GPT, senseless entry", gpt(200, 512, gptEntry{60, 50, ""}, gptEntry{1, 1 << 63, ""}, gptEntry{70, 70, "x"}), 0, "GPT 512, 3: 70+1 x"},
	} {
		t.Run(x.name, func(t *testing.T) {
			table, err := partition.Read(t.Context(), device(t, x.image, 0), x.sector)
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(table); got != x.want {
				t.Errorf("got  %s\nwant %s", got, x.want)
			}
		})
	}
}

// changed returns p with a header that was changed, and has a right checksum again,
// and without the copy.
func changed(p []byte, change func(header []byte)) []byte {
	change(p[512:604])
	sum(p[512:604])
	clear(p[len(p)-512:])
	return p
}

func TestBadTables(t *testing.T) {
	good := func() []byte { return gpt(200, 512, gptEntry{40, 49, "x"}) }
	circle := make([]byte, 512*100)
	copy(circle, mbr(mbrEntry{0x05, 10, 50}))
	copy(circle[5120:], mbr(mbrEntry{0x83, 1, 1}, mbrEntry{0x05, 0, 10}))
	broken := logicalDisk()
	broken[512*90+510] = 0
	cut := logicalDisk()[:512*80]
	both := good()
	both[530]++
	both[len(both)-500]++
	for _, x := range []struct {
		name   string
		image  []byte
		sector int64
		want   string
	}{
		{"small", make([]byte, 511), 0, "no room"},
		{"zeroes", make([]byte, 5120), 0, "signature"},
		{"a file system", append(append(bytes.Repeat([]byte("x"), 510), 0x55, 0xaa), 0), 0, "file system"},
		{"sector", mbr(), 1024, "512 or 4096"},
		{"circle", circle, 0, "circle"},
		{"broken chain", broken, 0, "broken behind number 6"},
		{"cut chain", cut, 0, "past the end of the disk"},
		{"no GPT", append(mbr(mbrEntry{0xee, 1, 100}), make([]byte, 51200)...), 0, "neither"},
		{"both damaged", both, 0, "the GPT at byte 101888: the checksum of its header"},
		{"wrong sector size", good(), 4096, "neither"},
		{"header size", changed(good(), func(h []byte) { le.PutUint32(h[12:], 513) }), 0, "claims to have 513 bytes"},
		{"small header", changed(good(), func(h []byte) { le.PutUint32(h[12:], 91) }), 0, "claims to have 91 bytes"},
		{"version", changed(good(), func(h []byte) { le.PutUint32(h[8:], 0x20000) }), 0, "version is 2.0"},
		{"another place", changed(good(), func(h []byte) { le.PutUint64(h[24:], 2) }), 0, "sector 2, and it is in 1"},
		{"entries far away", changed(good(), func(h []byte) { le.PutUint64(h[72:], 1<<63) }), 0, "the disk has 200"},
		{"entries past the end", changed(good(), func(h []byte) { le.PutUint64(h[72:], 190) }), 0, "past the end of the disk"},
		{"many entries", changed(good(), func(h []byte) { le.PutUint32(h[80:], 1<<31) }), 0, "2147483648 entries"},
		{"small entries", changed(good(), func(h []byte) { le.PutUint32(h[84:], 64) }), 0, "128 or more"},
		{"large entries", changed(good(), func(h []byte) { le.PutUint32(h[84:], 1<<31) }), 0, "not read"},
		{"checksum of entries", changed(good(), func(h []byte) { h[88]++ }), 0, "checksum of its entries"},
	} {
		t.Run(x.name, func(t *testing.T) {
			table, err := partition.Read(t.Context(), device(t, x.image, 0), x.sector)
			if err == nil {
				t.Fatalf("no error, but %s", describe(table))
			}
			if !strings.Contains(err.Error(), x.want) {
				t.Errorf("%v; want something with %q", err, x.want)
			}
		})
	}
}

// TestReadFails wants the error of the disk, not one about tables.
func TestReadFails(t *testing.T) {
	bad := errors.New("bad sector")
	d, err := block.New(failing{bad})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := partition.Read(t.Context(), d, 0); !errors.Is(err, bad) {
		t.Errorf("%v", err)
	}
}

// FuzzTable reads whatever is on a disk. With sums set, the checksums of the first
// GPT are made right, so that what is behind them is reached.
func FuzzTable(f *testing.F) {
	// Small ones: large inputs are fuzzed slowly.
	array := gptArray([]gptEntry{{5, 6, "x"}, {7, 7, "y"}})[:256]
	header := gptHeader(1, 7, 2, array)
	le.PutUint32(header[80:], 2)
	small := bytes.Join([][]byte{mbr(mbrEntry{0xee, 1, 100}), sum(header), make([]byte, 420), array, make([]byte, 5*512)}, nil)
	f.Add(small, false)
	f.Add(small, true)
	f.Add(bytes.Join([][]byte{mbr(mbrEntry{0x83, 1, 1}, mbrEntry{0x05, 1, 3}), mbr(mbrEntry{0x83, 1, 1}, mbrEntry{0x05, 2, 1}), nil,
		make([]byte, 512), mbr(mbrEntry{0x83, 0, 1})}, nil), false)
	f.Add(mbr(mbrEntry{0x05, 0, 10}), false)
	f.Fuzz(func(t *testing.T, image []byte, sums bool) {
		if sums && len(image) > 604 {
			h := image[512:]
			at, n := le.Uint64(h[72:]), uint64(le.Uint32(h[80:]))*uint64(le.Uint32(h[84:]))
			if at < 1<<20 && n < 1<<20 && at*512+n <= uint64(len(image)) {
				le.PutUint32(h[88:], crc32.ChecksumIEEE(image[at*512:][:n]))
			}
			if k := le.Uint32(h[12:]); k >= 92 && int64(k) <= int64(len(h)) {
				clear(h[16:20])
				le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:k]))
			}
		}
		d := device(t, image, int64(len(image)))
		table, err := partition.Read(t.Context(), d, 0)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "partition: ") || len(err.Error()) > 2000 {
				t.Fatalf("%v", err)
			}
			return
		}
		seen := map[int]bool{}
		for _, p := range table.Partitions {
			if p.Number < 1 || seen[p.Number] || p.Size <= 0 || p.Offset < 0 || p.Offset+p.Size < 0 {
				t.Fatalf("%+v", p)
			}
			seen[p.Number] = true
			b, err := partition.Layer(partition.Config{Number: p.Number})(d)
			if err == nil && b.Caps().Size != p.Size {
				t.Fatalf("%+v has %d bytes", p, b.Caps().Size)
			}
			if inside := p.Offset <= d.Size() && p.Size <= d.Size()-p.Offset; (err == nil) != (inside && !p.Extended) {
				t.Fatalf("%+v on a disk of %d bytes: %v", p, d.Size(), err)
			}
			if len(seen) == 64 {
				break // reading the table again and again takes long
			}
		}
	})
}
