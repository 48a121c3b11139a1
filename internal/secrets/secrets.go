// Package secrets reads a server's keys again when the server may not do so itself any
// more.
//
// A server is started as root, reads keys that nobody else may read, and becomes an
// ordinary user. When the keys have been renewed, it is told to read them again. So,
// before it changes its user, it starts a helper ([Start]): this program again, which
// [Main] recognises. The helper stays who it is, reads the files that were named at the
// start, as they are then, and no others: whoever takes the server over learns nothing
// from it but what the server knows.
//
// Messages between the two are JSON: first the list of names, then the place in that
// list for each file that is wanted, and what it holds for an answer.
package secrets

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"

	"nbd.example/nbd/internal/helper"
	"nbd.example/nbd/internal/opener"
)

// variable tells a process that it is a helper.
const variable = "NBD_SECRETS_HELPER"

// Limit bounds a file, in bytes.
const Limit = 16 << 20

// ErrGone says that the helper has ended.
var ErrGone = errors.New("the helper process that reads keys has ended, and there is no other until the server is restarted")

// reply is what a file holds, or why it cannot be read.
type reply struct {
	Text  []byte `json:",omitempty"`
	Error string `json:",omitempty"`
}

// Main must be called at the beginning of the program's main function. It returns
// false, unless the process is a helper; then it does its work and returns true when
// that is done, and the program should end.
func Main() bool {
	if !helper.Is(variable) {
		return false
	}
	serve(os.Stdin, os.Stdout)
	return true
}

// serve is the helper's half. It returns when there is nothing more to read from in,
// also if a file does not answer.
func serve(in io.Reader, out io.Writer) {
	messages, answers := json.NewDecoder(in), json.NewEncoder(out)
	var names []string
	if messages.Decode(&names) != nil {
		return
	}
	for {
		var i int
		if messages.Decode(&i) != nil || i < 0 || i >= len(names) {
			return
		}
		go func() { // the other half asks for one file at a time
			text, err := opener.ReadFile(opener.OS{}, names[i], Limit)
			r := reply{Text: text}
			if err != nil {
				r.Error = err.Error()
			}
			answers.Encode(r) // if nobody reads it, nobody wants to know
		}()
	}
}

// Reader is a helper process. Its methods may be called concurrently. Nil is one that
// reads nothing.
type Reader struct {
	names []string
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *json.Decoder

	reading sync.Mutex // one file at a time
	gone    bool
}

// Start starts a helper for the files of these absolute names. The program's main
// function must call [Main].
func Start(names []string) (*Reader, error) {
	r := &Reader{names: slices.Clone(names)}
	if err := r.start(); err != nil {
		return nil, fmt.Errorf("start the helper process that reads keys: %w", err)
	}
	return r, nil
}

func (r *Reader) start() (err error) {
	if r.cmd, err = helper.Command(variable); err != nil {
		return err
	}
	r.cmd.Dir = string(os.PathSeparator) // so that the present one can be unmounted
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	r.out = json.NewDecoder(out)
	if err := r.cmd.Start(); err != nil {
		return err
	}
	return json.NewEncoder(r.in).Encode(r.names)
}

// Knows reports whether the helper reads the file of that name.
func (r *Reader) Knows(name string) bool { return r != nil && slices.Contains(r.names, name) }

// Read returns what the file of a name that the helper knows holds now.
func (r *Reader) Read(name string) ([]byte, error) {
	r.reading.Lock()
	defer r.reading.Unlock()
	if r.gone {
		return nil, ErrGone
	}
	var got reply
	err := json.NewEncoder(r.in).Encode(slices.Index(r.names, name))
	if err == nil {
		err = r.out.Decode(&got)
	}
	if err != nil {
		r.gone = true
		r.in.Close()
		r.cmd.Wait()
		return nil, ErrGone
	}
	if got.Error != "" {
		return nil, errors.New(got.Error)
	}
	return got.Text, nil
}

// Close lets the helper end. Whoever waits in Read gets an error.
func (r *Reader) Close() error {
	if r == nil {
		return nil
	}
	return r.in.Close()
}
