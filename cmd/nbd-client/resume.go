package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
)

// resumeVariable tells a process that it goes on where the one before has stopped, whose
// number and sockets it has: it holds what that one was, in words with commas between.
const resumeVariable = "NBD_CLIENT_RESUME"

// resumption is what an upgraded process has to be.
type resumption struct{ background, swap bool }

// resuming returns what resumeVariable says, or nil, and takes the variable away.
func (p *program) resuming() *resumption {
	text := p.env.getenv(resumeVariable)
	if text == "" {
		return nil
	}
	os.Unsetenv(resumeVariable)
	words := strings.Split(text, ",")
	return &resumption{background: slices.Contains(words, "background"), swap: slices.Contains(words, "swap")}
}

// upgrade replaces the process by the program that is installed now.
func (k *keeper) upgrade(ctx context.Context) error {
	if k.self == "" {
		return errors.New("upgrade: the file of this program is not known")
	}
	words := []string{"resume"}
	if k.background {
		words = append(words, "background")
	}
	if k.p.swap.Load() {
		words = append(words, "swap")
	}
	args := append([]string{k.p.env.name}, k.p.args...)
	k.p.log.Info("starts anew", "program", k.self)
	return k.s.Reexec(k.self, args, append(os.Environ(), resumeVariable+"="+strings.Join(words, ",")))
}

// resume takes over the devices of the process before.
func (p *program) resume(ctx context.Context, r *resumption) int {
	if r.background {
		p.logs.ToSyslog()
	}
	k, err := p.newKeeper(ctx, r.swap)
	if err != nil {
		return p.fail(ctx, err)
	}
	defer k.end()
	k.background = r.background
	devices, err := k.s.Adopt(ctx)
	if err != nil {
		p.logLines(err)
	}
	if len(devices) == 0 {
		p.log.Error("none of the devices could be taken over from the process before")
		return exitError
	}
	k.listen()
	return k.keep(ctx)
}
