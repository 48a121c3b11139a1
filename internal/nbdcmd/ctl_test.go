package nbdcmd

import "testing"

// TestDefaultSocket: where a server's control socket is looked for, on each system.
func TestDefaultSocket(t *testing.T) {
	for _, x := range []struct{ system, programData, want string }{
		{"linux", "", "/run/nbd-server/control"},
		{"linux", `D:\Data`, "/run/nbd-server/control"},
		{"darwin", "", "/var/run/nbd-server/control"},
		{"freebsd", "", "/var/run/nbd-server/control"},
		{"openbsd", "", "/var/run/nbd-server/control"},
		{"windows", `D:\Data`, `D:\Data\nbd-server\control`},
		{"windows", "", `C:\ProgramData\nbd-server\control`},
	} {
		if got := socketOf(x.system, x.programData); got != x.want {
			t.Errorf("on %s, ProgramData %q: %s, want %s", x.system, x.programData, got, x.want)
		}
	}
}
