package hooks

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"os/user"
	"sync"
	"sync/atomic"
	"time"

	"nbd.example/nbd/internal/daemon"
	"nbd.example/nbd/internal/helper"
)

const (
	// maxOutput bounds what is kept of a command's output, in bytes.
	maxOutput = 4 << 10
	// straggle bounds the wait for output behind a command's end: what it has left
	// in the background may hold the pipe open for ever. On a busy machine the output
	// of others may come late, too.
	straggle = 2 * time.Second
	// mercy is the time between asking a command to end, and ending it.
	mercy = 5 * time.Second
)

// Main must be the first call of the program's main function. It returns false,
// unless the process is a helper; then it does its work and returns true when
// that is done, and the program should end.
func Main() bool {
	if !helper.Is(variable) {
		return false
	}
	s := server{out: os.Stdout, shell: shell, become: become}
	s.serve(os.Stdin)
	return true
}

// server is the helper's half.
type server struct {
	shell  func(text string) *exec.Cmd
	become func(*Config) error

	mu      sync.Mutex
	out     io.Writer
	running map[uint64]tree
	all     sync.WaitGroup
}

func (s *server) serve(in io.Reader) {
	s.running = make(map[uint64]tree)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			break
		}
		switch {
		case r.Config != nil:
			if err := s.become(r.Config); err != nil {
				s.say(reply{Error: err.Error()})
				return
			}
			s.say(reply{})
		case r.Kill:
			s.kill(r.ID)
		default:
			s.begin(&r)
		}
	}
	s.all.Wait()
}

// become changes to the user of the configuration.
func become(c *Config) error {
	group := c.Group
	if c.User != "" && group == "" {
		if u, err := user.Lookup(c.User); err == nil {
			group = u.Gid
		} else if u, err := user.LookupId(c.User); err == nil {
			group = u.Gid
		}
	}
	changed, err := daemon.Drop(c.User, group)
	if err == nil && !changed && c.User != "" && !same(c.User) {
		err = errors.New("only root can run commands as another user")
	}
	return err
}

// same reports whether this process is that user already.
func same(name string) bool {
	u, err := user.Current()
	return err == nil && (u.Username == name || u.Uid == name)
}

func (s *server) say(r reply) {
	line, err := json.Marshal(r)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Write(append(line, '\n')) // if nobody reads it, nobody wants to know
}

// begin starts a command, and tells of its end when that has come.
func (s *server) begin(r *request) {
	cmd := s.shell(r.Text)
	cmd.Env = append(os.Environ(), r.Env...)
	cmd.WaitDelay = straggle
	var output tail
	cmd.Stdout, cmd.Stderr = &output, &output
	all, err := launch(cmd)
	if err != nil {
		s.say(reply{ID: r.ID, Error: err.Error()})
		return
	}
	s.mu.Lock()
	s.running[r.ID] = all
	s.mu.Unlock()
	var late atomic.Bool
	limit := time.AfterFunc(cmp.Or(time.Duration(r.Limit), math.MaxInt64), func() {
		late.Store(true)
		s.kill(r.ID)
	})
	s.all.Go(func() {
		err := cmd.Wait()
		limit.Stop()
		s.mu.Lock()
		delete(s.running, r.ID)
		s.mu.Unlock()
		all.release()
		if errors.Is(err, exec.ErrWaitDelay) {
			err = nil // it has ended, with success
		}
		end := reply{ID: r.ID, Output: output.String()}
		if err != nil {
			end.Late = late.Load()
			end.Status, end.Why = cmd.ProcessState.ExitCode(), err.Error()
		}
		s.say(end)
	})
}

// kill ends a command with all that it has started: softly first.
func (s *server) kill(id uint64) {
	s.signal(id, false)
	time.AfterFunc(mercy, func() { s.signal(id, true) })
}

func (s *server) signal(id uint64, hard bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if all, ok := s.running[id]; ok {
		all.end(hard)
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	all []byte
	cut bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, p[max(0, len(p)-maxOutput):]...)
	if n := len(t.all) - maxOutput; n > 0 || len(p) > maxOutput {
		t.all = append(t.all[:0], t.all[max(n, 0):]...)
		t.cut = true
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := string(t.all)
	for len(s) > 0 && (s[len(s)-1] == '\n' || s[len(s)-1] == '\r') {
		s = s[:len(s)-1]
	}
	if t.cut {
		s = "…" + s
	}
	return s
}
