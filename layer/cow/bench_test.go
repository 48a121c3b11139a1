package cow_test

import (
	"testing"

	"nbd.example/nbd/backend/null"
	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/cow"
)

func bench(b *testing.B, c cow.Config) *block.Device {
	base, err := null.New(null.Config{Size: 1 << 30})
	if err != nil {
		b.Fatal(err)
	}
	d, _ := over(b, base, c)
	return d
}

func BenchmarkReadBase(b *testing.B) {
	d, p := bench(b, cow.Config{}), make([]byte, 4096)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if err := d.ReadAt(b.Context(), p, 1<<20); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOverwrite(b *testing.B) {
	d, p := bench(b, cow.Config{}), make([]byte, 4096)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if err := d.WriteAt(b.Context(), p, 1<<20, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRewriteLarge writes where it has just trimmed: each write finds its
// room anew.
func BenchmarkRewriteLarge(b *testing.B) {
	d, p := bench(b, cow.Config{}), make([]byte, 256<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if err := d.WriteAt(b.Context(), p, 1<<20, 0); err != nil {
			b.Fatal(err)
		}
		if err := d.Trim(b.Context(), 1<<20, int64(len(p)), 0); err != nil {
			b.Fatal(err)
		}
	}
}
