package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/memlock"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/server"
	"nbd.example/nbd/supervise"
)

// hang ends a test that is stuck. It is no measure of speed.
const hang = 60 * time.Second

// world is what the program runs in: a kernel that is not there, a folder of its own.
type world struct {
	t      *testing.T
	dir    string
	kernel *kerneltest.Kernel
	env    map[string]string
	// loaded is false for a kernel without the module.
	loaded bool
	// old is true for one without netlink.
	old bool
	// locked counts the processes that have prepared for swap.
	locked      atomic.Int32
	lockOptions atomic.Pointer[memlock.Options] // of the last one
	// stopping is true when the machine goes down.
	stopping bool
	// keeper is how long who keeps a device is waited for.
	keeper time.Duration
	// openers adds who has a device open.
	openers func(*kernel.Info)
	// parent is the number of the process that starts others.
	parent int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbdc") // short, for the paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, kernel: kerneltest.New(kerneltest.Config{Devices: 4}), env: map[string]string{}, loaded: true, keeper: hang, parent: 1}
	w.openers = func(info *kernel.Info) { info.Openers = []kernel.Opener{} }
	t.Cleanup(func() { w.kernel.Close() })
	w.write("nbdtab", "")
	return w
}

// write writes a file in the world's folder.
func (w *world) write(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// device returns a kernel device.
func (w *world) device(i kernel.Index) *kerneltest.Device {
	w.t.Helper()
	d := w.kernel.Device(i)
	if d == nil {
		w.t.Fatalf("there is no %s", i.Path())
	}
	return d
}

// environment is what the program gets.
func (w *world) environment(stdout, stderr *os.File, signals chan os.Signal) *environment {
	return &environment{
		name: "nbd-client", stdout: stdout, stderr: stderr,
		getenv: func(name string) string { return w.env[name] },
		open:   opener.OS{Dir: w.dir},
		driver: func(ioctl bool) (kernel.Driver, error) {
			if !w.loaded {
				return nil, kernel.ErrNoModule
			}
			if w.old {
				return old{w.kernel.Open()}, nil
			}
			return w.kernel.Open(), nil
		},
		loadModule: func(context.Context) error { return kernel.ErrNoModule },
		announce:   func(kernel.Index) {},
		signals:    signals,
		inherited:  func() []supervise.Socket { return nil },
		stopping:   func(context.Context) bool { return w.stopping },
		lockMemory: func(o memlock.Options) ([]memlock.Warning, error) {
			w.locked.Add(1)
			w.lockOptions.Store(&o)
			return nil, nil
		},
		look:    10 * time.Millisecond,
		keeper:  w.keeper,
		openers: w.openers,
		parent:  func() int { return w.parent },
	}
}

// args adds where the world keeps its things. Commands are the first word.
func (w *world) args(line []string) []string {
	own := []string{"--state-dir", filepath.Join(w.dir, "run"), "--nbdtab", filepath.Join(w.dir, "nbdtab")}
	if len(line) == 0 {
		return own
	}
	if line[0] == "--" {
		return append(own, line...)
	}
	return append([]string{line[0]}, append(append([]string{}, line[1:]...), own...)...)
}

// run runs the program to its end.
func (w *world) run(line ...string) (status int, stdout, stderr string) {
	w.t.Helper()
	p := w.start(line...)
	return p.wait()
}

// process is a run of the program that goes on.
type process struct {
	t       *testing.T
	signals chan os.Signal
	status  chan int
	cancel  context.CancelFunc

	mu       sync.Mutex
	out, err bytes.Buffer
	news     chan struct{} // gets a value when there is output
	readers  sync.WaitGroup
	ended    bool
	code     int
}

// start starts the program.
func (w *world) start(line ...string) *process {
	w.t.Helper()
	p := &process{t: w.t, signals: make(chan os.Signal, 4), status: make(chan int, 1), news: make(chan struct{}, 1)}
	stdout, stderr := p.pipe(&p.out), p.pipe(&p.err)
	ctx, cancel := context.WithCancel(w.t.Context())
	p.cancel = cancel
	env := w.environment(stdout, stderr, p.signals)
	go func() {
		status := run(ctx, w.args(line), env)
		stdout.Close()
		stderr.Close()
		p.readers.Wait()
		p.status <- status
	}()
	w.t.Cleanup(func() {
		cancel()
		p.wait()
		if w.t.Failed() {
			w.t.Logf("%q ended with %d; it said %s%s", line, p.code, p.out.String(), p.err.String())
		}
	})
	return p
}

// pipe returns the writing end of a pipe whose text goes to b.
func (p *process) pipe(b *bytes.Buffer) *os.File {
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.readers.Go(func() {
		defer r.Close()
		in := bufio.NewReader(r)
		for {
			line, err := in.ReadString('\n')
			p.mu.Lock()
			b.WriteString(line)
			p.mu.Unlock()
			select {
			case p.news <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	})
	return w
}

// said returns what was printed so far.
func (p *process) said() (stdout, stderr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String(), p.err.String()
}

// await waits until the program has printed text.
func (p *process) await(text string) {
	p.t.Helper()
	limit := time.After(hang)
	for {
		out, errs := p.said()
		if strings.Contains(out, text) || strings.Contains(errs, text) {
			return
		}
		select {
		case <-p.news:
		case status := <-p.status:
			p.status <- status
			out, errs = p.said()
			if !strings.Contains(out, text) && !strings.Contains(errs, text) {
				p.t.Fatalf("it ended with %d, and never said %q, but %s%s", status, text, out, errs)
			}
			return
		case <-limit:
			p.t.Fatalf("it does not say %q, but %s%s", text, out, errs)
		}
	}
}

// wait waits for the end.
func (p *process) wait() (status int, stdout, stderr string) {
	p.t.Helper()
	if !p.ended {
		select {
		case p.code = <-p.status:
			p.ended = true
		case <-time.After(hang):
			out, errs := p.said()
			p.t.Fatalf("it does not end; it said %s%s", out, errs)
		}
	}
	stdout, stderr = p.said()
	return p.code, stdout, stderr
}

// signal sends a signal.
func (p *process) signal(s os.Signal) { p.signals <- s }

// service is an NBD server for a test.
type service struct {
	*server.Server
	socket string
}

// serve serves exports of memory, by their names and sizes, on a unix socket.
func (w *world) serve(exports map[string]int64) *service {
	w.t.Helper()
	cfg := server.Config{AllowList: true}
	for _, name := range slices.Sorted(maps.Keys(exports)) {
		size := exports[name]
		cfg.Exports = append(cfg.Exports, &server.Export{
			Name: name,
			Open: func(context.Context, server.Client) (*block.Device, error) {
				b, err := memory.New(memory.Config{Size: size})
				if err != nil {
					return nil, err
				}
				return block.New(b)
			},
		})
	}
	return w.serveConfig(cfg)
}

func (w *world) serveConfig(cfg server.Config) *service {
	w.t.Helper()
	s, err := server.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	path := filepath.Join(w.dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		w.t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { s.Serve(l) })
	w.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // cut what is left
		s.Shutdown(ctx)
		serving.Wait()
	})
	return &service{Server: s, socket: path}
}

// uri names an export.
func (s *service) uri(export string) string { return "nbd+unix:///" + export + "?socket=" + s.socket }

// roundTrip writes to a kernel device and reads back.
func (w *world) roundTrip(i kernel.Index, text string) {
	w.t.Helper()
	d := w.device(i)
	p := bytes.Repeat([]byte(text+"-"), 512)[:512]
	if _, err := d.WriteAt(p, 1024); err != nil {
		w.t.Fatalf("write to %s: %v", i.Path(), err)
	}
	got := make([]byte, 512)
	if _, err := d.ReadAt(got, 1024); err != nil || !bytes.Equal(got, p) {
		w.t.Fatalf("read from %s: %q, %v", i.Path(), got, err)
	}
}

// attached reports whether the kernel has the device attached.
func (w *world) attached(i kernel.Index) bool {
	w.t.Helper()
	d := w.kernel.Open()
	defer d.Close()
	st, err := d.Status(w.t.Context(), i)
	if errors.Is(err, kernel.ErrNoDevice) {
		return false
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return st.Connected
}

func indexOf(n int) kernel.Index { return kernel.Index(n) }
