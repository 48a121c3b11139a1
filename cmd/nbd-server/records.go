package main

import (
	"errors"
	"fmt"
	"sync"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/trlog"
	"nbd.example/nbd/server"
	"nbd.example/nbd/transmission"
)

// records are the transaction logs that are open, by their paths. They outlive
// reloads: two writers of one file would tear each other's records.
type records struct {
	mu   sync.Mutex
	open map[string]*record
}

// record is one transaction log, with what exports tell it through.
type record struct {
	log         *trlog.Log
	plain, data *trlog.Tap      // without and with what is written
	exports     map[string]bool // names of those that have ever had it
}

// tap returns what the requests of an export are told to, nil for nothing. It
// opens the log.
func (p *program) tap(x *nbdconf.Export) (transmission.Tap, error) {
	if x.TransactionLog == "" || p.printsOnly() {
		return nil, nil
	}
	path := p.env.open.Abs(x.TransactionLog)
	r := &p.records
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.open[path]
	if one == nil {
		log, err := trlog.Open(trlog.Config{
			Name: path, Data: x.DataLog, Logger: p.log,
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
		one = &record{log: log, plain: log.Tap(false), data: log.Tap(true), exports: make(map[string]bool)}
		if r.open == nil {
			r.open = make(map[string]*record)
		}
		r.open[path] = one
	}
	one.exports[x.Name] = true
	if x.DataLog {
		return one.data, nil
	}
	return one.plain, nil
}

// rotate opens all logs anew by their names.
func (p *program) rotate() {
	r := &p.records
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.open {
		if err := one.log.Reopen(); err != nil {
			p.log.Error("cannot open a transaction log anew, the old file is written on", "error", err)
		}
	}
}

// renew opens the log of an export anew by its name, if that was taken away. It is called
// before each prerun, which may rename the log, as the reference's manual has it, so that
// the next client gets another one.
func (p *program) renew(x *nbdconf.Export) {
	r := &p.records
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.open[p.env.open.Abs(x.TransactionLog)]
	if one == nil {
		return
	}
	if err := one.log.Reopen(); err != nil {
		p.log.Error("cannot open a transaction log anew, the old file is written on", "error", err)
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

// closeRecords closes the logs of which which says so. Nil closes all.
func (p *program) closeRecords(which func(path string, one *record) bool) {
	r := &p.records
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for path, one := range r.open {
		if which == nil || which(path, one) {
			errs = append(errs, one.log.Close())
			delete(r.open, path)
		}
	}
	if err := errors.Join(errs...); err != nil {
		p.logLines(err)
	}
}
