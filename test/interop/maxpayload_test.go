package interop

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/supervise"
	"nbd.example/nbd/test/harness"
)

// TestClientMaxPayload attaches a server that answers long requests with errors: the
// kernel must be told to make none, and be free again afterwards.
func TestClientMaxPayload(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Linux(), testgate.Program("nbdkit"))
	const size, most, before = 4 * mib, 64 << 10, 1280 << 10
	port := harness.FreePort(t)
	serveBy(t, port, "nbdkit", "-f", "-i", "127.0.0.1", "-p", fmt.Sprint(port), "--filter=blocksize-policy", "memory", fmt.Sprint(size),
		fmt.Sprint("blocksize-maximum=", most), "blocksize-preferred=4096", "blocksize-minimum=1", "blocksize-error-policy=error")
	k := kerneltest.New(kerneltest.Config{MaxRequest: before})
	t.Cleanup(func() { k.Close() })
	driver := k.Open()
	s, err := supervise.New(supervise.Config{Kernel: driver, Dir: filepath.Join(harness.Dir(t), "run")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(t.Context(), false) })
	d, err := s.Attach(t.Context(), &supervise.Spec{URIs: []string{fmt.Sprintf("nbd://127.0.0.1:%d", port)}})
	if err != nil {
		t.Fatal(err)
	}
	if st := d.Status(); st.MaxRequest != most || st.MaxBefore != before {
		t.Errorf("%+v", st)
	}
	dev, want := k.Device(d.Index()), harness.Random(1, size)
	if _, err := dev.WriteAt(want, 0); err != nil {
		t.Errorf("write: %v", err)
	}
	got := make([]byte, size)
	if _, err := dev.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read: %v", err)
	}
	if err := d.Detach(t.Context(), false); err != nil {
		t.Error(err)
	}
	if info, err := driver.Info(d.Index()); err != nil || info.MaxRequest != before {
		t.Errorf("when it is detached: %+v, %v", info, err)
	}
}
