// Package hooks runs commands of an administrator for a server that has given up
// its privileges.
//
// # Concepts
//
// A server is started as root, opens its sockets and keys, and becomes an ordinary
// user. What it runs for its clients (the prerun and postrun of nbd-server) may
// have to be run as somebody else, and should be run by a process that holds none
// of the server's sockets, keys and memory. So, before it changes its user, the
// server starts a helper ([Start]): this program again, which [Main] recognises. The
// helper becomes the user that commands are to be run as, and takes commands from
// its standard input until that ends, which is when the server ends.
//
// A command is given to the system's shell. It has a session of its own, an empty
// standard input, and / as its working directory. What it says is kept, as far as the last
// 4 KiB of it, and returned when it has ended. On Windows the shell is cmd.exe, a job
// object stands for the session, and the root of the system's drive for /.
//
// Messages between the two are lines of JSON.
package hooks

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"time"

	"nbd.example/nbd/internal/helper"
)

// variable tells a process that it is a helper.
const variable = "NBD_HOOKS_HELPER"

// maxLine bounds a message, in bytes.
const maxLine = 1 << 20

// Config says who runs commands.
type Config struct {
	// User and Group are names or numbers; "" stays what it is. Without a Group,
	// the helper takes the user's own.
	User, Group string
}

// Command is what is to be run.
type Command struct {
	Text string   // for the shell
	Env  []string // NAME=value, in addition to the server's environment
	// Limit is how long it may take. Then it is ended, with all that it has started; the
	// helper does so also when the server has gone. 0 means as long as it wants.
	Limit time.Duration
}

// Failed says that a command has ended without success.
type Failed struct {
	Status int    // of exit; -1 if a signal ended it
	Why    string // what the system says of the end
	Output string // the end of what it said
}

// Error has the end of the output, quoted.
func (f *Failed) Error() string {
	if f.Output == "" {
		return "the command failed: " + f.Why
	}
	return fmt.Sprintf("the command failed: %s; it said %q", f.Why, f.Output)
}

// ErrGone says that the helper has ended.
var ErrGone = errors.New("the helper process that runs commands has ended")

// request is a message to the helper: the first one is a Config, others begin a
// command, or end one.
type request struct {
	Config *Config  `json:",omitempty"`
	ID     uint64   `json:",omitempty"`
	Text   string   `json:",omitempty"`
	Env    []string `json:",omitempty"`
	Limit  int64    `json:",omitempty"` // nanoseconds
	Kill   bool     `json:",omitempty"`
}

// reply is a message from the helper. The one to a Config has no ID.
type reply struct {
	ID     uint64 `json:",omitempty"`
	Error  string `json:",omitempty"` // the command could not be run, or the Config not obeyed
	Status int    `json:",omitempty"`
	Why    string `json:",omitempty"` // "" for success
	Output string `json:",omitempty"`
	Late   bool   `json:",omitempty"` // it was ended at its limit
}

// Helper is a process that runs commands. Its methods may be called concurrently.
type Helper struct {
	cmd *exec.Cmd

	sending sync.Mutex // one message at a time; never waited for with mu held
	in      io.WriteCloser

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan reply
	gone    bool
	ended   chan struct{}
	how     error // set before ended is closed
}

// Start starts a helper and waits until it has become who it should be. The
// program's main function must call [Main] first of all.
func Start(c Config) (*Helper, error) {
	h, err := start(c)
	if err != nil {
		return nil, fmt.Errorf("start the helper process that runs commands: %w", err)
	}
	return h, nil
}

func start(c Config) (*Helper, error) {
	cmd, err := helper.Command(variable)
	if err != nil {
		return nil, err
	}
	h := &Helper{cmd: cmd, waiting: make(map[uint64]chan reply), ended: make(chan struct{})}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.cmd.Start(); err != nil {
		return nil, err
	}
	first := make(chan reply, 1)
	h.waiting[0] = first
	go h.listen(out)
	if err := h.send(&request{Config: &c}); err == nil {
		r, ok := <-first
		if ok && r.Error == "" {
			return h, nil
		}
		err = errors.New(r.Error)
		if !ok {
			err = ErrGone
		}
		h.Close()
		return nil, err
	}
	h.Close()
	return nil, ErrGone
}

// listen hands out replies until there are no more.
func (h *Helper) listen(out io.Reader) {
	in := bufio.NewScanner(out)
	in.Buffer(nil, maxLine)
	for in.Scan() {
		var r reply
		if json.Unmarshal(in.Bytes(), &r) != nil {
			break
		}
		h.mu.Lock()
		ch := h.waiting[r.ID]
		delete(h.waiting, r.ID)
		h.mu.Unlock()
		if ch != nil {
			ch <- r // it has room for this one
		}
	}
	h.mu.Lock()
	h.gone = true
	for _, ch := range h.waiting {
		close(ch)
	}
	h.waiting = nil
	h.mu.Unlock()
	h.how = h.cmd.Wait()
	close(h.ended)
}

// Gone reports whether the helper runs no commands any more. It does so before Ended.
func (h *Helper) Gone() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gone
}

// Ended is closed when the helper has ended, after Close or by itself.
func (h *Helper) Ended() <-chan struct{} { return h.ended }

// Why tells after Ended how the helper has ended, for people.
func (h *Helper) Why() string {
	if h.how == nil {
		return "it ended by itself"
	}
	return h.how.Error()
}

func (h *Helper) send(r *request) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// The helper may be slow to read: meanwhile its replies must be read, or it would
	// wait for us as we do for it.
	h.sending.Lock()
	defer h.sending.Unlock()
	_, err = h.in.Write(append(line, '\n'))
	return err
}

// Run runs a command, waits for its end, and returns what it has said. An error is
// a [*Failed] if the command ran to its end. If ctx is done before, the command is ended, with all
// that it has started, and Run returns only then.
func (h *Helper) Run(ctx context.Context, c Command) (output string, err error) {
	ch := make(chan reply, 1)
	h.mu.Lock()
	if h.gone {
		h.mu.Unlock()
		return "", ErrGone
	}
	h.last++
	id := h.last
	h.waiting[id] = ch
	h.mu.Unlock()
	if h.send(&request{ID: id, Text: c.Text, Env: c.Env, Limit: int64(c.Limit)}) != nil {
		return "", ErrGone
	}
	stop := context.AfterFunc(ctx, func() { h.send(&request{ID: id, Kill: true}) })
	defer stop()
	r, ok := <-ch
	switch {
	case !ok:
		return "", ErrGone
	case r.Error != "":
		return "", fmt.Errorf("the command cannot be run: %s", r.Error)
	case r.Late:
		return r.Output, fmt.Errorf("the command was ended, it took longer than %v", c.Limit)
	case r.Why != "" && ctx.Err() != nil:
		return r.Output, fmt.Errorf("the command was ended: %w", context.Cause(ctx))
	case r.Why != "":
		return r.Output, &Failed{r.Status, r.Why, r.Output}
	}
	return r.Output, nil
}

// PID returns the number of the helper's process.
func (h *Helper) PID() int { return h.cmd.Process.Pid }

// Close lets the helper end. Commands that it runs are run to their end, for which
// Close does not wait.
func (h *Helper) Close() error { return h.in.Close() }
