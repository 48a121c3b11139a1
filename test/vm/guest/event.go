package guest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What the agent reports.
const (
	Ready = "ready" // the machine is up; Text is the kernel's version
	Log   = "log"   // a line of the scenario
	Pass  = "pass"  // the scenario has passed
	Fail  = "fail"  // it has not; the reasons were logged
)

// mark begins each line of the agent.
const mark = "@vm "

// Event is one line that the agent writes to the second serial line.
type Event struct {
	Kind  string `json:"kind"`
	Nonce string `json:"nonce,omitempty"` // of the command that it answers
	Text  string `json:"text,omitempty"`
}

// Line returns the event as a line.
func (e Event) Line() []byte {
	p, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings can be marshalled
	}
	return append(append([]byte(mark), p...), '\n')
}

// ParseEvent reads a line. Lines of others than the agent are no events.
func ParseEvent(line string) (Event, bool) {
	var e Event
	_, text, ok := strings.Cut(line, mark)
	if !ok || json.Unmarshal([]byte(text), &e) != nil {
		return Event{}, false
	}
	return e, true
}

// Command tells the agent to run a scenario.
type Command struct {
	Nonce string        // comes back with every event
	Limit time.Duration // after which the scenario has failed
	Name  string
	Args  []string // for the scenario; words without spaces
}

// Line returns the command as a line.
func (c Command) Line() string {
	line := fmt.Sprintf("run %s %d %s", c.Nonce, c.Limit.Milliseconds(), c.Name)
	return strings.Join(append([]string{line}, c.Args...), " ") + "\n"
}

// ParseCommand reads a line of the host.
func ParseCommand(line string) (Command, error) {
	words := strings.Fields(line)
	if len(words) < 4 || words[0] != "run" {
		return Command{}, fmt.Errorf("not a command: %q", line)
	}
	ms, err := strconv.Atoi(words[2])
	if err != nil {
		return Command{}, fmt.Errorf("not a command: %q: %w", line, err)
	}
	return Command{Nonce: words[1], Limit: time.Duration(ms) * time.Millisecond, Name: words[3], Args: words[4:]}, nil
}

// PlanPath is where the machine finds its Plan, as JSON.
const PlanPath = "/etc/vm.json"

// Plan is what init has to do.
type Plan struct {
	Modules []Module // in the order of loading
	Network bool     // there is an interface to the host, beside the loopback one
}

// Module is a kernel module in the archive.
type Module struct {
	Name    string
	Options string
	Depends []string
	Aliases []string
	Lazy    bool // loaded when the kernel asks for it, not at the start
}

// ModulePath returns where the machine has a module.
func ModulePath(name string) string { return "/lib/modules/" + name + ".ko" }

// ClientPath is where the machine has our nbd-client. The one on the search path is
// Debian's.
const ClientPath = "/opt/nbd/nbd-client"
