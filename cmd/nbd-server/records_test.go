package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/internal/serverflags"
	"nbd.example/nbd/internal/trlog"
	"nbd.example/nbd/proto"
)

// deadDisk has files that can be opened only while it is alive.
type deadDisk struct {
	mu    sync.Mutex
	alive chan struct{} // closed while it is
}

// answer lets it be alive, if it is not.
func (d *deadDisk) answer() {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.alive:
	default:
		close(d.alive)
	}
}

func (d *deadDisk) die() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive = make(chan struct{})
}

func (d *deadDisk) wait() {
	d.mu.Lock()
	alive := d.alive
	d.mu.Unlock()
	<-alive
}

// returns fails the test if f does not return. Nothing is measured by it.
func returns(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal(what + " waits for the disk of the log")
	}
}

// saying is what a program has said so far.
type saying struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *saying) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *saying) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), what)
}

// onDeadDisk returns a program with a transaction log, which x has, on a disk that does
// not answer any more.
func onDeadDisk(t *testing.T) (p *program, x *nbdconf.Export, d *deadDisk, said *saying) {
	x, d, said = &nbdconf.Export{Name: "e"}, &deadDisk{alive: make(chan struct{})}, &saying{}
	d.answer()
	x.TransactionLog = filepath.Join(t.TempDir(), "log")
	l, err := trlog.Open(trlog.Config{Name: x.TransactionLog, Open: func() (trlog.File, error) {
		d.wait()
		return os.OpenFile(x.TransactionLog, trlog.OpenFlags, trlog.OpenMode)
	}})
	if err != nil {
		t.Fatal(err)
	}
	p = &program{env: &environment{open: opener.Here()}, log: slog.New(slog.NewTextHandler(said, nil))}
	one := newRecord(x.TransactionLog, l)
	p.records.add(one, x.Name)
	t.Cleanup(func() {
		d.answer()
		one.reopening <- struct{}{} // nobody opens it any more
		p.closeRecords(nil)
	})
	d.die()
	return p, x, d, said
}

// TestLogOnDeadDisk: neither clients nor reloads wait for ever for a log whose disk does
// not answer. It is complained of once, and all is well when it answers.
func TestLogOnDeadDisk(t *testing.T) {
	p, x, d, said := onDeadDisk(t)
	p.records.patience = time.Millisecond
	returns(t, "a client", func() {
		if err := p.renew(t.Context(), x); err != nil {
			t.Errorf("a client is kept from its data: %v", err)
		}
	})
	p.records.patience = time.Hour
	returns(t, "one more client", func() { p.renew(t.Context(), x) })
	returns(t, "a reload", p.rotate)
	if n := said.count("cannot be opened anew for long"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	d.answer()
	one := p.records.find(x.TransactionLog)
	one.reopening <- struct{}{} // once the disk has answered
	<-one.reopening
	if n := said.count("answers again"); n != 1 || said.count("level=ERROR") != 1 {
		t.Errorf("it was said %d times that the disk answers:\n%s", n, &said.b)
	}
	if runtime.GOOS == "windows" {
		return // an open file cannot be renamed here
	}
	if err := os.Rename(x.TransactionLog, x.TransactionLog+".1"); err != nil {
		t.Fatal(err)
	}
	p.renew(t.Context(), x)
	if _, err := os.Stat(x.TransactionLog); err != nil {
		t.Error(err)
	}
}

// TestClientLeavesDeadLog: who waits for the log of a client ends with the client.
func TestClientLeavesDeadLog(t *testing.T) {
	p, x, _, said := onDeadDisk(t)
	p.records.patience = time.Hour
	gone := errors.New("the client is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	for range 2 { // one begins, one waits for it
		returns(t, "a client", func() {
			if err := p.renew(ctx, x); !errors.Is(err, gone) {
				t.Errorf("%v, want %v", err, gone)
			}
		})
	}
	if said.count("level=") != 0 {
		t.Errorf("it says %s", &said.b)
	}
}

// deadOpener opens files of a deadDisk.
type deadOpener struct {
	opener.Opener
	disk    *deadDisk
	entered chan struct{}
}

func (o *deadOpener) OpenFile(name string, flag int, mode fs.FileMode) (*os.File, error) {
	o.entered <- struct{}{}
	o.disk.wait()
	return o.Opener.OpenFile(name, flag, mode)
}

// TestEndWithDeadLog: the program ends though logs are being opened on a dead disk, for a
// client and for a reload.
func TestEndWithDeadLog(t *testing.T) {
	p, x, d, _ := onDeadDisk(t)
	p.records.patience = time.Hour
	p.flags = &serverflags.Flags{}
	o := &deadOpener{opener.Here(), d, make(chan struct{})}
	p.env.open = o
	go p.renew(t.Context(), x)
	y := &nbdconf.Export{Name: "y"}
	y.TransactionLog = x.TransactionLog + "2"
	opened := make(chan error)
	go func() {
		_, err := p.tap(y)
		opened <- err
	}()
	<-o.entered
	one := p.records.find(x.TransactionLog)
	for begun := false; !begun; runtime.Gosched() {
		begun = len(one.reopening) > 0
	}
	returns(t, "the end", func() { p.closeRecords(nil) })
	d.answer()
	if err := <-opened; err != nil {
		t.Error(err)
	}
	p.closeRecords(nil)
}

// TestLongLogAfterCrash: a server whose long log was not closed in order keeps it under another
// name each time, unless its name is a link.
func TestLongLogAfterCrash(t *testing.T) {
	said := &saying{}
	p := &program{flags: &serverflags.Flags{}, env: &environment{open: opener.Here()}, log: slog.New(slog.NewTextHandler(said, nil))}
	dir := t.TempDir()
	x := &nbdconf.Export{Name: "e"}
	x.TransactionLog = filepath.Join(dir, "log")
	start := func() {
		t.Helper()
		if _, err := p.tap(x); err != nil {
			t.Fatal(err)
		}
		p.closeRecords(nil)
	}
	then := time.Date(2026, 2, 3, 4, 5, 6, 0, time.Local)
	crashed := func() {
		t.Helper()
		read := proto.AppendRequest(nil, &proto.Request{Command: proto.CmdRead})
		if err := os.WriteFile(x.TransactionLog, read, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Truncate(x.TransactionLog, 20<<20), os.Chtimes(x.TransactionLog, then, then)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		crashed()
		start()
	}
	for name, size := range map[string]int64{"log": 0, "log.20260203-040506": 20 << 20, "log.20260203-040506-2": 20 << 20} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() != size {
			t.Errorf("%s: %v, %v; want %d bytes", name, info, err, size)
		}
	}
	if runtime.GOOS == "windows" {
		return // links need rights
	}
	crashed()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(x.TransactionLog, link); err != nil {
		t.Fatal(err)
	}
	x.TransactionLog = link
	start()
	if info, err := os.Lstat(link); err != nil || info.Mode().IsRegular() || said.count("is a link") != 1 {
		t.Errorf("the link: %v, %v\n%s", info, err, &said.b)
	}
}
