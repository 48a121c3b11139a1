package supervise

import (
	"fmt"
	"testing"
	"time"
)

// The request timeout is what the kernel is told, and told again with each connection.
func TestTimeouts(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	for i, c := range []struct{ spec, want time.Duration }{
		{0, DefaultTimeout}, {3 * time.Second, 3 * time.Second}, {-1, 0},
	} {
		d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Timeout: c.spec, Identifier: fmt.Sprint(i)})
		for range 2 {
			if st := d.Status(); st.Timeout != c.want || dev.Attached().Timeout != c.want {
				t.Errorf("%v: timeout %v; the kernel has %v", c.spec, st.Timeout, dev.Attached().Timeout)
			}
			h.kill()
			r.awaitPhase(d, Reconnecting)
			h.serve(x)
			r.awaitPhase(d, Attached)
		}
	}
}
