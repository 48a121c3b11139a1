package chain

import (
	"math"
	"testing"
)

func TestParseSize(t *testing.T) {
	for _, x := range []struct {
		text string
		want int64 // -1 for an error
	}{
		{"0", 0}, {"1", 1}, {"1k", 1 << 10}, {"1K", 1 << 10}, {"3m", 3 << 20}, {"1G", 1 << 30}, {"1T", 1 << 40},
		{"1P", 1 << 50}, {"7E", 7 << 60}, {"8E", -1}, {"1KiB", 1 << 10}, {"2gib", 2 << 30},
		{"9223372036854775807", math.MaxInt64}, {"9223372036854775808", -1},
		{"", -1}, {"k", -1}, {"-1", -1}, {"+1", -1}, {"1.5G", -1}, {"1kB", -1}, {"1B", -1}, {"1kk", -1}, {"1iB", -1},
		{"1 k", -1}, {"0x10", -1}, {"1Ki", -1},
	} {
		got, err := ParseSize(x.text)
		if (err != nil) != (x.want < 0) || err == nil && got != x.want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", x.text, got, err, x.want)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0", 1: "1", 1023: "1023", 1024: "1k", 1536: "1536", 1 << 20: "1M", 5 << 60: "5E", math.MaxInt64: "9223372036854775807",
	} {
		if got := FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

func FuzzSize(f *testing.F) {
	for _, s := range []string{"1", "1k", "8E", "0G", "1023PiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseSize(text)
		if err != nil {
			return
		}
		if again, err := ParseSize(FormatSize(n)); n < 0 || err != nil || again != n {
			t.Fatalf("ParseSize(%q) = %d, which is written %q, which is %d (%v)", text, n, FormatSize(n), again, err)
		}
	})
}
