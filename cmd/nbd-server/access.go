package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/server"
)

// maxRules bounds a list of addresses, in bytes.
const maxRules = 16 << 20

// settleTime is how old a file must be when it is read, to be known by its time: a
// second change in the same tick of the file system's clock would not be seen.
const settleTime = 2 * time.Second

// access is the list of an export's clients, as it was read last. Each client that
// comes by a network has it looked at: one call to the system, as long as it is the same.
type access struct {
	p *program
	x *nbdconf.Export

	mu    sync.Mutex
	rules *server.Rules // nil if there was no file
	info  fs.FileInfo   // of the file that rules are from; nil if there was none
	when  time.Time     // of reading
	said  string        // the last complaint
}

// newAccess reads the list of an export's clients. It is nil if there is to be none.
func (p *program) newAccess(x *nbdconf.Export) (*access, error) {
	if x.AuthFile == "" {
		return nil, nil
	}
	a := &access{p: p, x: x}
	return a, a.read()
}

// read takes over the list as it is now, or nothing. Only a file that does not exist
// lets everybody in: one that cannot be read must not.
func (a *access) read() error {
	open, name, now := a.p.env.open, a.x.AuthFile, time.Now()
	bad := func(err error) error { return fmt.Errorf("%s: authfile: %w", a.x.Where("authfile"), err) }
	info, err := open.Stat(name)
	if err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		// Opening it would wait for somebody to write, and a reload with it.
		return bad(fmt.Errorf("%s is a pipe; it must be a regular file", name))
	}
	text, err := opener.ReadFile(open, name, maxRules)
	if errors.Is(err, fs.ErrNotExist) {
		a.rules, a.info, a.when = nil, nil, now
		return nil
	}
	if err != nil {
		return bad(err)
	}
	rules, err := server.ParseRules(strings.NewReader(string(text)), name)
	if err != nil {
		return bad(err)
	}
	a.rules, a.info, a.when = rules, info, now
	return nil
}

// now returns the list as it is at this moment. One that has changed, and cannot be
// read or understood, lets nobody in: whoever has just been taken out must not stay in
// for a slip of the pen on another line.
func (a *access) now() *server.Rules {
	a.mu.Lock()
	defer a.mu.Unlock()
	info, err := a.p.env.open.Stat(a.x.AuthFile)
	same := err == nil && a.same(info) || errors.Is(err, fs.ErrNotExist) && a.info == nil
	if same && a.said == "" && (err != nil || a.when.Sub(info.ModTime()) > settleTime) {
		return a.rules
	}
	if err := a.read(); err != nil {
		if text := err.Error(); text != a.said { // not the same for each client
			a.said = text
			a.p.log.Error("the list of clients cannot be used; until it is right nobody is let in who has an address", "export", a.x.Name, "error", err)
		}
		return &server.Rules{}
	}
	if !same || a.said != "" {
		a.said = ""
		a.p.log.Info("the list of clients was read anew", "export", a.x.Name, "authfile", a.x.AuthFile)
	}
	return a.rules
}

// same tells whether the list was read from that file as it is.
func (a *access) same(info fs.FileInfo) bool {
	return a.info != nil && os.SameFile(a.info, info) && a.info.Size() == info.Size() && a.info.ModTime().Equal(info.ModTime())
}
