package main

import (
	"os"

	"nbd.example/nbd/internal/proglog"
)

// service is a service manager that speaks to the program by calls: that of
// Windows.
type service struct {
	log     proglog.Sink     // takes the log, in place of standard error
	state   func(string)     // is told what systemd is told: READY=1 and so on
	signals <-chan os.Signal // what it wants, as the signal that would say so elsewhere
}

// forward passes on what the manager wants until the program ends. A program that
// is no service has none.
func (s *service) forward(to chan<- os.Signal) {
	if s == nil {
		return
	}
	go func() {
		for sig := range s.signals {
			to <- sig
		}
	}()
}
