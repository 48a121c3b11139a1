package guest

import (
	"time"

	"nbd.example/nbd/test/harness"
)

// LosePackets makes a network device lose all packets for as long as d.
func LosePackets(t *T, dev string, d time.Duration) {
	harness.Run(t, "tc", "qdisc", "add", "dev", dev, "root", "netem", "loss", "100%")
	time.Sleep(d) // The time is the thing: those at both ends wait, and have limits.
	harness.Run(t, "tc", "qdisc", "del", "dev", dev, "root")
}
