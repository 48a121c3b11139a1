package clientflags

import (
	"strings"

	"nbd.example/nbd/internal/typo"
)

// place gives the operands their meaning.
func (p *parser) place() {
	f := p.flags
	switch f.Action {
	case Help, Version:
	case Attach, Exports:
		p.source()
		p.check()
	case Check, Disconnect, Completion, Chains, Udev:
		p.most(0)
	case Generator:
		if n := len(p.operands); n != 0 && n != 1 && n != 3 {
			p.fail("a generator of systemd gets three folders")
		}
		f.Dirs = p.operands
	default:
		p.commandOperands()
	}
}

// most complains about operands beyond n.
func (p *parser) most(n int) {
	if len(p.operands) > n {
		p.fail("%s is one operand too many", typo.Quote(p.operands[n]))
	}
}

// commandOperands takes the operands of a command.
func (p *parser) commandOperands() {
	f := p.flags
	n := len(p.operands)
	switch f.Action {
	case List, Supervisor:
		p.most(0)
		return
	case Upgrade:
	case Detach:
		if n == 0 {
			p.fail("which device? %s", p.command.Usage())
		}
	default: // Status, Resize, Wait
		if n == 0 {
			p.fail("which device? %s", p.command.Usage())
			return
		}
		p.second()
		f.Devices = p.operands[:1]
		return
	}
	f.Devices = p.operands
}

// second takes the operand behind the device.
func (p *parser) second() {
	most := 2
	if p.flags.Action == Status {
		most = 1
	}
	p.most(most)
	word := ""
	if len(p.operands) > 1 {
		word = p.operands[1]
	}
	switch p.flags.Action {
	case Resize:
		if word == "" {
			return
		}
		n, err := parseSize(word)
		if err != nil || n == 0 {
			p.fail("%s is not a size in bytes, with k, M, G or T behind it", typo.Quote(word))
		}
		p.flags.NewSize = n
	case Wait:
		if word != "ready" && word != "gone" {
			p.fail("wait until what? %s", p.command.Usage())
		}
		p.flags.Until = word
	}
}

// source takes the operands that say what to attach, or whom to ask.
func (p *parser) source() {
	f, ops := p.flags, p.operands
	switch {
	case f.Serve != "":
		p.takeDevice(ops)
	case len(ops) == 0 && len(p.errs) > 0: // perhaps because of them
	case len(ops) == 0:
		p.fail("nothing to do: name a server, a URI or a device of %s; --help explains the command line", DefaultTab)
	case IsURI(ops[0]):
		for len(ops) > 0 && IsURI(ops[0]) {
			f.URIs, ops = append(f.URIs, ops[0]), ops[1:]
		}
		p.takeDevice(ops)
	case f.Action == Attach && len(ops) == 1 && IsDeviceName(ops[0]) && !f.Unix:
		f.Tab = tabName(ops[0])
	default:
		p.takeHost(ops)
	}
}

// tabName is how nbdtab calls a device.
func tabName(s string) string { return strings.TrimPrefix(s, "/dev/") }

// takeHost takes host [port] [device], or path [device].
func (p *parser) takeHost(ops []string) {
	f := p.flags
	f.Host, ops = ops[0], ops[1:]
	if !f.Unix {
		// A port or a name makes it a server, as old scripts may call it.
		sure := p.dashed || f.Name != "" || len(ops) > 0 && isNumber(ops[0])
		if findCommand(f.Host) != nil && f.Action == Attach && !sure {
			p.fail("%s is a command only as the first word; a server of that name is nbd://%s/", typo.Quote(f.Host), f.Host)
		}
		p.splitHost()
		if len(ops) > 0 && isNumber(ops[0]) {
			port, err := parsePort(ops[0])
			if err != nil {
				p.fail("%w", err)
			}
			f.Port, ops = port, ops[1:]
		}
	}
	if f.Host == "" {
		p.fail("the server's name is an empty word")
	}
	p.takeDevice(ops)
}

// splitHost takes brackets off an IPv6 address, and a port that hangs on the host.
func (p *parser) splitHost() {
	host, port, err := SplitHost(p.flags.Host)
	if err != nil {
		p.fail("%w", err)
		return
	}
	p.flags.Host = host
	if port != "" {
		p.flags.Port = port
	}
}

// takeDevice takes the last operand.
func (p *parser) takeDevice(ops []string) {
	f := p.flags
	if f.Action == Exports && len(ops) > 0 {
		p.fail("%s is one operand too many: -l wants only a server", typo.Quote(ops[0]))
		return
	}
	switch {
	case len(ops) == 0:
		return
	case len(ops) > 1:
		p.fail("%s is one operand too many", typo.Quote(ops[1]))
	}
	if ops[0] == "auto" {
		return
	}
	if !IsDeviceName(ops[0]) && !strings.HasPrefix(ops[0], "/") {
		if f.Host != "" && f.Port == "" && !f.Unix {
			p.fail("%s is neither a port number nor the name of an NBD device, which is like /dev/nbd0", typo.Quote(ops[0]))
			return
		}
	}
	if err := checkDevice(ops[0]); err != nil {
		p.fail("%w", err)
		return
	}
	f.Device = ops[0]
}

// check looks for what contradicts itself.
func (p *parser) check() {
	if err := p.flags.Check(); err != nil {
		p.fail("%w", err)
	}
}
