package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nbd.example/nbd/internal/control"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/internal/trlog"
	"nbd.example/nbd/server"
	"nbd.example/nbd/transmission"
)

// records are the transaction logs that are open, by their paths. They outlive
// reloads: two writers of one file would tear each other's records.
type records struct {
	opening sync.Mutex // held while a log is opened, which may take as long as the disk likes
	mu      sync.Mutex // never held while anything waits for a disk
	open    map[string]*record
	// patience is reopenPatience, if it is 0.
	patience time.Duration
}

// record is one transaction log, with what exports tell it through.
type record struct {
	path        string
	log         *trlog.Log
	plain, data *trlog.Tap      // without and with what is written
	exports     map[string]bool // names of those that have ever had it

	reopening chan struct{} // holds one while the log is opened anew
	stuck     atomic.Bool   // that takes long: nobody waits for it any more
}

func newRecord(path string, log *trlog.Log) *record {
	return &record{
		path: path, log: log, plain: log.Tap(false), data: log.Tap(true),
		exports: make(map[string]bool), reopening: make(chan struct{}, 1),
	}
}

// tap returns what the requests of an export are told to, nil for nothing. It
// opens the log.
func (p *program) tap(x *nbdconf.Export) (transmission.Tap, error) {
	if x.TransactionLog == "" || p.printsOnly() {
		return nil, nil
	}
	path := p.env.open.Abs(x.TransactionLog)
	r := &p.records
	r.opening.Lock()
	defer r.opening.Unlock()
	one := r.find(path)
	if one == nil {
		log, err := trlog.Open(trlog.Config{
			Name: path, Data: x.DataLog, Logger: p.log,
			SetAside: func() (string, error) { return setAside(p.env.open, path) },
			Open: func() (trlog.File, error) {
				f, err := p.env.open.OpenFile(path, trlog.OpenFlags, trlog.OpenMode)
				if err != nil {
					return nil, err // not a nil *os.File in an interface
				}
				return f, nil
			},
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", x.Where("transactionlog"), err)
		}
		one = newRecord(path, log)
	}
	r.add(one, x.Name)
	if x.DataLog {
		return one.data, nil
	}
	return one.plain, nil
}

// setAside renames a log: behind its name stands when it was last written.
func setAside(o opener.Opener, path string) (string, error) {
	list, err := o.ReadDir(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	find := func(name string) int {
		return slices.IndexFunc(list, func(e fs.DirEntry) bool { return e.Name() == filepath.Base(name) })
	}
	i := find(path)
	if i < 0 || !list[i].Type().IsRegular() {
		return "", fmt.Errorf("%s is a link, and a new log would lie elsewhere", path)
	}
	info, err := list[i].Info()
	if err != nil {
		return "", err
	}
	name := path + info.ModTime().Format(".20060102-150405")
	for n, first := 2, name; find(name) >= 0; n++ {
		name = fmt.Sprint(first, "-", n)
	}
	return name, o.Rename(path, name)
}

// find returns the log of that path, or nil.
func (r *records) find(path string) *record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open[path]
}

// describe tells for each log what it lacks.
func (r *records) describe() (list []control.TransactionLog) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, path := range slices.Sorted(maps.Keys(r.open)) {
		list = append(list, control.TransactionLog{File: path, Lost: r.open[path].log.Stats().Lost})
	}
	return list
}

// add notes a log, and that an export has it.
func (r *records) add(one *record, export string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil {
		r.open = make(map[string]*record)
	}
	r.open[one.path] = one
	one.exports[export] = true
}

// rotate opens all logs anew by their names.
func (p *program) rotate() {
	r := &p.records
	r.mu.Lock()
	all := slices.Collect(maps.Values(r.open))
	r.mu.Unlock()
	var wg sync.WaitGroup
	for _, one := range all {
		wg.Go(func() { p.reopen(context.Background(), one) })
	}
	wg.Wait()
}

// renew opens the log of an export anew by its name, if that was taken away. It is called
// before each prerun, which may rename the log, as the reference's manual has it, so that
// the next client gets another one. It fails only if ctx ends.
func (p *program) renew(ctx context.Context, x *nbdconf.Export) error {
	if one := p.records.find(p.env.open.Abs(x.TransactionLog)); one != nil {
		p.reopen(ctx, one)
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("open the transaction log anew: %w", err)
	}
	return nil
}

// reopenPatience bounds the wait for a log that is opened anew.
const reopenPatience = 5 * time.Second

// reopen opens a log anew by its name, and waits for that, but not for a disk that does not
// answer: a log must not keep clients from their data. Until the disk answers records go
// to the old file, where somebody finds them, or are lost and counted there.
func (p *program) reopen(ctx context.Context, one *record) {
	wait, cancel := context.WithTimeout(ctx, cmp.Or(p.records.patience, reopenPatience))
	defer cancel()
	select {
	case one.reopening <- struct{}{}:
	default:
		if one.stuck.Load() {
			return // it was said
		}
		select {
		case one.reopening <- struct{}{}:
		case <-wait.Done():
			p.giveUp(ctx, one)
			return
		}
	}
	one.stuck.Store(false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := one.log.Reopen(); err != nil {
			p.log.Error("cannot open a transaction log anew, the old file is written on", "error", err)
		}
		if one.stuck.Swap(false) {
			p.log.Info("the disk of a transaction log answers again", "file", one.path)
		}
		<-one.reopening
	}()
	select {
	case <-done:
	case <-wait.Done():
		p.giveUp(ctx, one)
	}
}

// giveUp has nobody wait any more for a log that is being opened anew.
func (p *program) giveUp(ctx context.Context, one *record) {
	if ctx.Err() == nil && one.stuck.CompareAndSwap(false, true) {
		p.log.Error("a transaction log cannot be opened anew for long: its disk does not answer; the old file is written on, and nobody waits", "file", one.path)
	}
}

// retire closes the logs that no export of a configuration has any more. Clients
// that were there before the configuration still tell the log that they began with: as
// long as an export that had it has clients, it stays open, until the next time.
func (p *program) retire(s *server.Server, conf *nbdconf.Config) {
	busy := make(map[string]bool)
	for _, e := range s.Exports() {
		busy[e.Export.Name] = busy[e.Export.Name] || e.Clients > 0
	}
	wanted := make(map[string]bool)
	for _, x := range conf.Exports {
		if x.TransactionLog != "" {
			wanted[p.env.open.Abs(x.TransactionLog)] = true
		}
	}
	p.closeRecords(func(path string, one *record) bool {
		for name := range one.exports {
			if busy[name] {
				return false
			}
		}
		return !wanted[path]
	})
}

// closeRecords closes the logs of which which says so. Nil closes all. It waits as long as
// one log waits for its disk.
func (p *program) closeRecords(which func(path string, one *record) bool) {
	r := &p.records
	r.mu.Lock()
	var list []*record
	for path, one := range r.open {
		if which == nil || which(path, one) {
			list = append(list, one)
			delete(r.open, path)
		}
	}
	r.mu.Unlock()
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, one := range list {
		wg.Go(func() { errs[i] = one.log.Close() })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		p.logLines(err)
	}
}
