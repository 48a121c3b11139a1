package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells systemd about the state of the server, where it wants to know, or
// what is like it elsewhere.
func (p *program) notify(state string) {
	if p.env.service != nil {
		p.env.service.state(state)
		return
	}
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	if strings.HasPrefix(state, "RELOADING=1") {
		state += "\n" + strings.TrimSpace(daemon.SdNotifyMonotonicUsec())
	}
	if _, err := daemon.SdNotify(false, state); err != nil {
		p.log.Warn("cannot tell the service manager", "state", state, "error", err)
	}
}

// readyText says that the server serves.
func readyText(exports int) string {
	return fmt.Sprintf("READY=1\nSTATUS=serving %d exports", exports)
}
