package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"nbd.example/nbd/chain"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise"
)

// description is a device as --json prints it.
type description struct {
	Device     string   `json:"device"`
	Index      uint32   `json:"index"`
	Identifier string   `json:"identifier,omitempty"`
	URIs       []string `json:"uris,omitempty"`  // of the export
	Serve      string   `json:"serve,omitempty"` // the chain, if the process serves it itself
	Size       int64    `json:"size"`            // bytes
	BlockSize  int64    `json:"block_size,omitempty"`
	ReadOnly   bool     `json:"read_only"`
	State      string   `json:"state"`
	Reason     string   `json:"reason,omitempty"`
	Kept       bool     `json:"kept"` // a process connects it anew
	PID        int      `json:"pid,omitempty"`
	Since      string   `json:"since,omitempty"`
	// InFlight counts the requests that the kernel waits for.
	InFlight   *inFlight `json:"in_flight,omitempty"`
	Reconnects int       `json:"reconnects"`
	// Asked says that the server has said which instance of the export it serves, or that
	// it names none. Otherwise nobody would notice that the disk is replaced.
	Asked       bool                   `json:"asked"`
	Instance    string                 `json:"instance,omitempty"`
	Connections []supervise.Connection `json:"connections,omitempty"`
	Partitions  []string               `json:"partitions,omitempty"`
	Holders     []string               `json:"holders,omitempty"`
	Mounts      []string               `json:"mounts,omitempty"`
	Swap        bool                   `json:"swap,omitempty"`
	Openers     []kernel.Opener        `json:"openers,omitempty"` // of status alone: all processes are looked at for it
	Timeout     *jsonTimes             `json:"timeouts,omitempty"`
}

type inFlight struct {
	Reads  int `json:"reads"`
	Writes int `json:"writes"`
}

// jsonTimes are in seconds.
type jsonTimes struct {
	Request float64 `json:"request"`
	Dead    float64 `json:"dead"`
}

// describeView makes a description of a view.
func describeView(v *view) *description {
	d := &description{
		Device: v.index.Path(), Index: uint32(v.index), Identifier: v.identifier(), State: string(v.phase()), Kept: v.connected && v.kept(), PID: v.process(),
	}
	if i := v.info; i != nil {
		d.Size, d.BlockSize, d.ReadOnly = i.Size, i.BlockSize, i.ReadOnly
		d.InFlight = &inFlight{Reads: i.Reads, Writes: i.Writes}
		d.Partitions, d.Holders, d.Mounts, d.Swap, d.Openers = i.Partitions, i.Holders, i.Mounts, i.Swap, i.Openers
	}
	if s := v.state; s != nil && v.phase() != "detached" {
		d.URIs, d.Serve, d.Reconnects, d.Connections = s.Spec.URIs, s.Spec.Serve, s.Reconnects, v.connections()
		d.Asked, d.Instance = s.Seen.Asked, s.Seen.Instance
		if v.kept() {
			d.Reason = s.Reason
		}
		if !s.Since.IsZero() {
			d.Since = s.Since.Format(time.RFC3339)
		}
		d.Timeout = &jsonTimes{Request: s.Timeout.Seconds(), Dead: s.DeadTimeout.Seconds()}
	}
	return d
}

// list prints all attached devices.
func (p *program) listDevices(ctx context.Context) int {
	driver, err := p.anyDriver()
	if errors.Is(err, kernel.ErrNoModule) && !p.flags.JSON {
		p.log.Info("no device: the module nbd is not loaded")
		return exitOK
	}
	var all []*view
	if err == nil {
		defer driver.Close()
		all, err = p.views(ctx, driver)
	}
	if err != nil && !errors.Is(err, kernel.ErrNoModule) {
		return p.fail(ctx, err)
	}
	devices := []*description{}
	for _, v := range all {
		if v.phase() != "detached" {
			devices = append(devices, describeView(v))
		}
	}
	if p.flags.JSON {
		return p.tell(p.printJSON(map[string]any{"devices": devices}))
	}
	return p.tell(p.printTable(devices))
}

func (p *program) printJSON(v any) error {
	e := json.NewEncoder(p.env.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printTable prints devices for people.
func (p *program) printTable(devices []*description) error {
	w := tabwriter.NewWriter(p.env.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DEVICE\tSIZE\tSTATE\tPROCESS\tSINCE\tIN FLIGHT\tRECONNECTS\tEXPORT")
	for _, d := range devices {
		since := "-"
		if t, err := time.Parse(time.RFC3339, d.Since); err == nil {
			since = t.Local().Format("2006-01-02 15:04")
		}
		pid := "-"
		if d.PID != 0 {
			pid = fmt.Sprint(d.PID)
		}
		waiting := "-"
		if d.InFlight != nil {
			waiting = fmt.Sprint(d.InFlight.Reads + d.InFlight.Writes)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n",
			d.Device, chain.FormatSize(d.Size), d.State, pid, since, waiting, d.Reconnects, d.what())
	}
	return w.Flush()
}

// what names the export for people.
func (d *description) what() string {
	switch {
	case d.Serve != "":
		return printable(d.Serve)
	case len(d.URIs) > 0:
		return printable(strings.Join(d.URIs, " "))
	case d.Identifier != "":
		return printable(d.Identifier)
	}
	return "-"
}

// status prints one device; its exit status says more.
func (p *program) status(ctx context.Context) int {
	v, err := p.find(ctx, p.flags.Devices[0])
	if errors.Is(err, kernel.ErrNoDevice) || errors.Is(err, kernel.ErrNoModule) {
		p.log.Info(fmt.Sprintf("%s is not attached: %v", p.flags.Devices[0], err))
		return exitError
	}
	if err != nil {
		p.fail(ctx, err)
		return exitUnknown
	}
	if v.info != nil {
		p.env.openers(v.info)
	}
	d := describeView(v)
	if p.flags.JSON {
		err = p.printJSON(d)
	} else {
		err = p.printStatus(d)
	}
	switch {
	case err != nil:
		p.tell(err)
		return exitUnknown
	case !v.connected:
		return exitError
	case v.waits():
		return exitWaiting
	}
	return exitOK
}

// waits reports whether the device is attached, and has no connection.
func (v *view) waits() bool {
	return v.connected && v.state != nil && v.state.Waits(v.kept())
}

// connections returns those of a state. Nobody has looked at them since their process ended;
// but what was tied to that is dead.
func (v *view) connections() []supervise.Connection {
	list := slices.Clone(v.state.Connections)
	if !v.kept() && v.state.Tied() {
		for i := range list {
			list[i].Alive = false
		}
	}
	return list
}

// printStatus prints a device for people, a line for each thing.
func (p *program) printStatus(d *description) error {
	w := tabwriter.NewWriter(p.env.stdout, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s:\t%s\n", name, value)
		}
	}
	line("device", d.Device)
	line("state", d.State)
	for _, r := range strings.Split(d.Reason, "\n") { // one for each server
		line("reason", printable(r))
	}
	used := usersOf(&kernel.Info{Mounts: d.Mounts, Swap: d.Swap, Holders: d.Holders, Openers: d.Openers})
	if d.State == "detached" {
		line("used", used)
		return w.Flush()
	}
	line("export", d.what())
	line("identifier", printable(d.Identifier))
	size := fmt.Sprintf("%d bytes (%s), blocks of %d", d.Size, chain.FormatSize(d.Size), d.BlockSize)
	if d.ReadOnly {
		size += ", read-only"
	}
	line("size", size)
	switch {
	case d.Kept:
		line("process", fmt.Sprintf("%d keeps it", d.PID))
	case d.PID != 0:
		line("process", fmt.Sprintf("none keeps it; attached by %d", d.PID))
	}
	line("instance", printable(d.Instance))
	if d.Kept && !d.Asked {
		line("instance", "not verified: the server does not answer on a second connection, so nobody would notice that its disk is replaced")
	}
	line("since", d.Since)
	for _, c := range d.Connections {
		alive := "alive"
		switch {
		case !c.Alive:
			alive = "dead"
		case !d.Kept:
			alive = "was alive when its process ended"
		}
		line("connection", strings.TrimSpace(printable(c.Server)+" "+alive))
	}
	if d.Kept {
		line("reconnects", fmt.Sprint(d.Reconnects))
	}
	if d.InFlight != nil {
		line("in flight", fmt.Sprintf("%d reads, %d writes", d.InFlight.Reads, d.InFlight.Writes))
	}
	line("partitions", strings.Join(d.Partitions, " "))
	line("used", used)
	return w.Flush()
}
