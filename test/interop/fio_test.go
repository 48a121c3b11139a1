package interop

import (
	"encoding/json"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// TestFio lets fio write patterns at random, read them back and verify them.
func TestFio(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Output("nbd", "fio", "--enghelp"))
	for _, c := range []struct {
		name string
		args []string
	}{
		{"small, deep", []string{"--rw=randwrite", "--bs=4k", "--iodepth=64"}},
		{"small, one at a time", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--io_size=4M"}},
		{"mixed", []string{"--rw=randrw", "--bs=4k", "--iodepth=32"}},
		{"odd size", []string{"--rw=randwrite", "--bs=1536", "--iodepth=32", "--io_size=8M"}},
		{"large", []string{"--rw=write", "--bs=1M", "--iodepth=8"}},
		{"with flushes", []string{"--rw=randwrite", "--bs=16k", "--iodepth=16", "--fsync=32"}},
		{"four jobs", []string{"--rw=randwrite", "--bs=8k", "--iodepth=16", "--numjobs=4", "--offset_increment=8M", "--size=8M"}},
	} {
		for _, kind := range []string{"file", "memory"} {
			t.Run(c.name+", "+kind, func(t *testing.T) {
				t.Parallel()
				var s *harness.Server
				if kind == "memory" {
					s = harness.Start(t, harness.Config{Exports: section("disk", "memory:32M")})
				} else {
					s = serveDisk(t, make([]byte, 32*mib)).Server
				}
				fio(t, s, c.args...)
			})
		}
	}
}

// fio runs one job with verification and looks at its count of errors.
func fio(t *testing.T, s *harness.Server, args ...string) {
	t.Helper()
	args = append([]string{
		"--name=job", "--ioengine=nbd", "--uri=" + s.URI("disk"), "--size=32M", "--thread",
		"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0", "--randseed=7", "--output-format=json",
	}, args...)
	out := harness.Run(t, "fio", args...)
	var result struct {
		Jobs []struct {
			Error int
			Read  struct {
				Bytes int64 `json:"io_bytes"`
			}
			Write struct {
				Bytes int64 `json:"io_bytes"`
			}
		}
	}
	// Notes may stand before and behind the object.
	text := out[max(strings.Index(out, "{\n"), 0):]
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&result); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(result.Jobs) == 0 {
		t.Fatalf("fio ran no job:\n%s", out)
	}
	for i, j := range result.Jobs {
		if j.Error != 0 || j.Write.Bytes == 0 || j.Read.Bytes == 0 {
			t.Errorf("job %d: error %d, %d bytes written, %d read", i, j.Error, j.Write.Bytes, j.Read.Bytes)
		}
	}
}
