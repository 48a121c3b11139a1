package scenarios

import (
	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// System returns the scenarios that run in a Debian with systemd. Those whose names begin
// alike are steps of one test, in test/vm: what one leaves is there for the next.
func System() []guest.Scenario {
	return []guest.Scenario{
		{Name: "root-look", Series: all, Run: rootLook},
		{Name: "root-work", Series: all, Run: rootWork},
		{Name: "root-verify", Series: all, Run: rootVerify},
		{Name: "units-boot", Series: all, Run: unitsBoot},
		{Name: "units-server", Series: all, Run: unitsServer},
		{Name: "units-names", Series: all, Run: unitsNames},
		{Name: "units-start", Series: all, Run: unitsStart},
		{Name: "units-restart", Series: all, Run: unitsRestart},
		{Name: "units-kill", Series: all, Run: unitsKill},
		{Name: "units-leave", Series: all, Run: unitsLeave},
		{Name: "units-late", Series: all, Run: unitsLate},
		{Name: "units-orphans", Series: all, Run: unitsOrphans},
		{Name: "reboot", Series: all, Run: reboot},
	}
}

// reboot asks the system to start again.
func reboot(t *guest.T) { harness.Run(t, "systemctl", "--no-block", "reboot") }
