package main

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"nbd.example/nbd/internal/clientflags"
)

// notifier tells systemd how the process is, where it wants to know. A nil notifier
// tells nobody.
type notifier struct {
	p      *program
	last   string
	ticker *time.Ticker
}

func newNotifier(p *program) *notifier {
	if !p.notified() {
		return nil
	}
	return &notifier{p: p}
}

// notifySocket is the variable that says where a service manager waits for messages.
const notifySocket = "NOTIFY_SOCKET"

// notified reports whether it waits for those of this very process: of one that it has
// started itself, or that stays in the foreground since it was told to. What a script calls
// inherits the variable from that script's unit, and must neither speak for it nor stay.
func (p *program) notified() bool {
	if p.env.getenv(notifySocket) == "" {
		return false
	}
	return p.flags.Foreground || p.flags.Action == clientflags.Supervisor || p.env.parent() == 1
}

func (n *notifier) send(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		n.p.log.Warn("cannot tell the service manager", "state", state, "error", err)
	}
}

// ready says that the devices can be used, and what the process does: whoever waits for it
// to be ready finds both.
func (n *notifier) ready(text string) {
	if n == nil {
		return
	}
	n.last = text
	n.send("STATUS=" + text + "\nREADY=1")
	every, err := daemon.SdWatchdogEnabled(false)
	if err == nil && every > 0 {
		n.ticker = time.NewTicker(every / 2)
	}
}

// dog ticks when it is time to say that the process lives; nil if nobody wants to know.
func (n *notifier) dog() <-chan time.Time {
	if n == nil || n.ticker == nil {
		return nil
	}
	return n.ticker.C
}

// lives says that the process lives.
func (n *notifier) lives() { n.send("WATCHDOG=1") }

// status says what the process does.
func (n *notifier) status(text string) {
	if n == nil || text == n.last {
		return
	}
	n.last = text
	n.send("STATUS=" + text)
}

func (n *notifier) stopping() {
	if n != nil {
		n.send("STOPPING=1")
	}
}

func (n *notifier) end() {
	if n != nil && n.ticker != nil {
		n.ticker.Stop()
	}
}

// systemStops asks systemd whether the machine is going down. Other service managers have
// no such question.
func systemStops(ctx context.Context) bool {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output() // it fails unless all is well
	return strings.TrimSpace(string(out)) == "stopping"
}
