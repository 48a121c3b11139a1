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

// TestClientOldstyle keeps a device whose server is nbdkit as it speaks with antique
// clients, through a restart of that.
func TestClientOldstyle(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Linux(), testgate.Program("nbdkit"))
	const size = 4 * mib
	image := harness.Image(t, harness.Dir(t), "image", make([]byte, size))
	port := harness.FreePort(t)
	start := func() *harness.Process {
		p := harness.Spawn(t, nil, "nbdkit", "-f", "-o", "-i", "127.0.0.1", "-p", fmt.Sprint(port), "file", image)
		p.AwaitListening("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		return p
	}
	server := start()
	k := kerneltest.New(kerneltest.Config{})
	t.Cleanup(func() { k.Close() })
	s, err := supervise.New(supervise.Config{Kernel: k.Open(), Dir: filepath.Join(harness.Dir(t), "run")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(t.Context(), true) })
	d, err := s.Attach(t.Context(), &supervise.Spec{URIs: []string{fmt.Sprintf("nbd://127.0.0.1:%d", port)}})
	if err != nil {
		t.Fatal(err)
	}
	dev := k.Device(d.Index())
	if a := dev.Attached(); a.Size != size {
		t.Errorf("attached as %+v", a)
	}
	for i := range 3 {
		want := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		if _, err := dev.WriteAt(want, int64(i)*8192); err != nil {
			t.Fatal(err)
		}
		// No flush: nbdkit 1.32 offers it to such clients, and refuses it all the same.
		server.Kill()
		server = start()
		// It may answer on the new connection only, whenever that is there.
		got := make([]byte, 4096)
		if _, err := dev.ReadAt(got, int64(i)*8192); err != nil || !bytes.Equal(got, want) {
			t.Errorf("restart %d: %v", i, err)
		}
	}
	if st := d.Status(); st.Reconnects == 0 {
		t.Errorf("%+v", st)
	}
	if err := d.Detach(t.Context(), false); err != nil {
		t.Error(err)
	}
}
