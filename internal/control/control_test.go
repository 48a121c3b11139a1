package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// limit bounds waits for what must happen. Nothing is measured by it.
const limit = 60 * time.Second

// fake is a Handler that notes what it is asked for.
type fake struct {
	mu    sync.Mutex
	calls []string
	err   error
	// block is called by RemoveExport.
	block func(ctx context.Context) error
}

func (f *fake) note(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

var since = time.Date(2020, 2, 3, 4, 5, 6, 7000, time.UTC)

func (f *fake) Status(context.Context) (Status, error) {
	return Status{Program: "test", PID: 7, Since: since, Config: []string{"/a"}, Exports: 1, Connections: 2}, f.note("status")
}

func (f *fake) Exports(context.Context) ([]Export, error) {
	return []Export{{Name: "a\n\"b", State: "serving", Size: 1 << 40}}, f.note("exports")
}

func (f *fake) Connections(context.Context) ([]Connection, error) {
	return []Connection{{ID: 1<<64 - 1, Since: since, Read: 1 << 63}}, f.note("connections")
}

func (f *fake) CloseConnection(_ context.Context, id uint64, how Clients) error {
	return f.note("close %d %v", id, how)
}

func (f *fake) AddExport(_ context.Context, name string, keys map[string]string) (Changes, error) {
	return Changes{Added: []string{name}}, f.note("add %s %v", name, keys)
}

func (f *fake) ChangeExport(_ context.Context, name string, keys map[string]string, how Clients) (Changes, error) {
	return Changes{Changed: []string{name}}, f.note("change %s %v %v", name, keys, how)
}

func (f *fake) RemoveExport(ctx context.Context, name string, how Clients) (Changes, error) {
	if f.block != nil {
		if err := f.block(ctx); err != nil {
			return Changes{}, err
		}
	}
	return Changes{Removed: []string{name}}, f.note("remove %s %v", name, how)
}

func (f *fake) Reload(context.Context) (Changes, error) { return Changes{}, f.note("reload") }
func (f *fake) ReloadCerts(context.Context) error       { return f.note("certs") }
func (f *fake) Section(_ context.Context, name string) (Section, error) {
	return Section{Name: name, Keys: map[string]string{"exportname": "/a\n"}}, f.note("section %s", name)
}

func (f *fake) Merge(ctx context.Context, name string, wait bool) ([]Merge, error) {
	if name == "panic" {
		panic("merge")
	}
	if f.block != nil {
		if err := f.block(ctx); err != nil {
			return nil, err
		}
	}
	return []Merge{{Export: name, State: "merged"}}, f.note("merge %s %v", name, wait)
}

func (f *fake) MergeAll(_ context.Context, wait bool) ([]Merge, error) {
	return []Merge{}, f.note("merge all %v", wait)
}

// start serves h on a socket of the test, whose path it returns.
func start(t testing.TB, h Handler) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbdctl") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "control")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(limit):
			t.Error("Serve does not end")
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
		os.RemoveAll(dir)
	})
	return path
}

func mustDial(t testing.TB, path string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestRequests sends every request over one connection.
func TestRequests(t *testing.T) {
	f := &fake{}
	c := mustDial(t, start(t, f))
	keys := map[string]string{"exportname": "/x \\ \n"}
	for _, x := range []struct {
		r      Request
		result any
		want   any
	}{
		{Request{Op: OpStatus}, &Status{}, &Status{Program: "test", PID: 7, Since: since, Config: []string{"/a"}, Exports: 1, Connections: 2}},
		{Request{Op: OpList}, &[]Export{}, &[]Export{{Name: "a\n\"b", State: "serving", Size: 1 << 40}}},
		{Request{Op: OpConnections}, &[]Connection{}, &[]Connection{{ID: 1<<64 - 1, Since: since, Read: 1 << 63}}},
		{Request{Op: OpClose, ID: 5, Clients: "drain"}, nil, nil},
		{Request{Op: OpAdd, Export: "x", Keys: keys}, &Changes{}, &Changes{Added: []string{"x"}}},
		{Request{Op: OpChange, Export: "x", Keys: keys, Clients: "cut"}, &Changes{}, &Changes{Changed: []string{"x"}}},
		{Request{Op: OpRemove, Export: "x"}, &Changes{}, &Changes{Removed: []string{"x"}}},
		{Request{Op: OpReload}, &Changes{}, &Changes{}},
		{Request{Op: OpCerts}, nil, nil},
		{Request{Op: OpMerge, Export: "x"}, &[]Merge{}, &[]Merge{{Export: "x", State: "merged"}}},
		{Request{Op: OpMerge, All: true, Wait: true}, &[]Merge{}, &[]Merge{}},
		{Request{Op: OpShow, Export: "x"}, &Section{}, &Section{Name: "x", Keys: map[string]string{"exportname": "/a\n"}}},
	} {
		if err := c.Do(t.Context(), x.r, x.result); err != nil {
			t.Errorf("%s: %v", x.r.Op, err)
		}
		if !reflect.DeepEqual(x.result, x.want) {
			t.Errorf("%s: %+v, want %+v", x.r.Op, x.result, x.want)
		}
	}
	want := "status; exports; connections; close 5 drain; add x map[exportname:/x \\ \n]; change x map[exportname:/x \\ \n] cut; remove x stay; reload; certs; merge x false; merge all true; section x"
	if got := strings.Join(f.calls, "; "); got != want {
		t.Errorf("the handler was asked %q, want %q", got, want)
	}
}

// TestErrors wants errors to keep what they say, and the connection to go on.
func TestErrors(t *testing.T) {
	f := &fake{err: errorf(NotFound, "no such thing")}
	c := mustDial(t, start(t, f))
	for _, x := range []struct {
		set  error
		op   Op
		name string
		code Code
		text string
	}{
		{errorf(NotFound, "no such thing"), OpRemove, "", NotFound, "no such thing"},
		{fmt.Errorf("remove: %w", errorf(Exists, "it is there")), OpAdd, "", Exists, "it is there"},
		{errors.New("plain"), OpReload, "", Failed, "plain"},
		{nil, "nonsense", "", BadRequest, `there is no request "nonsense"`},
		{nil, OpMerge, "panic", Failed, "a fault in the server"},
	} {
		f.mu.Lock()
		f.err = x.set
		f.mu.Unlock()
		err := c.Do(t.Context(), Request{Op: x.op, Export: x.name}, nil)
		var got *Error
		if !errors.As(err, &got) || got.Code != x.code || !strings.Contains(got.Text, x.text) {
			t.Errorf("%s: %v, want %s: %s", x.op, err, x.code, x.text)
		}
	}
}

// raw sends text and returns what comes back until the server hangs up.
func raw(t *testing.T, path, text string) string {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(limit))
	go func() {
		io.WriteString(nc, text)
		nc.(*net.UnixConn).CloseWrite()
	}()
	answer, err := io.ReadAll(nc)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatal(err)
	}
	return string(answer)
}

// TestRawRequests speaks the protocol by hand, rightly and wrongly.
func TestRawRequests(t *testing.T) {
	f := &fake{}
	path := start(t, f)
	for text, want := range map[string]string{
		`{"v":1,"op":"certs"}` + "\n":                                      `{"v":1,"result":{}}`,
		`{"v":1,"op":"certs"}` + "\n" + `{"v":1,"op":"certs"}` + "\n":      `{"v":1,"result":{}}` + "\n" + `{"v":1,"result":{}}`,
		`{"v":2,"op":"certs","new":1}` + "\n":                              `"bad-version"`,
		`{"op":"certs"}` + "\n":                                            `"bad-version"`,
		`{"v":1,"op":"certs","new":1}` + "\n":                              `unknown field`,
		`{"v":1,"op":"certs"} {"v":1}` + "\n":                              `"bad-request"`,
		`{"v":1,"op":"certs"}`:                                             `does not end in a newline`,
		"nonsense\n":                                                       `no JSON object`,
		"\n":                                                               `no JSON object`,
		"[1]\n":                                                            `no JSON object`,
		`{"v":1,"op":"close","id":1}` + "\n":                               `close needs clients`,
		`{"v":1,"op":"remove","clients":"eaten"}` + "\n":                   `want stay, drain or cut`,
		`{"v":1,"op":"remove","seconds":-1}` + "\n":                        `seconds is -1`,
		`{"v":1,"op":"remove","keys":{"a":"b"}}` + "\n":                    `has no keys`,
		`{"v":1,"op":"remove","wait":true}` + "\n":                         `neither all nor wait`,
		`{"v":1,"op":"merge","export":"x","all":true}` + "\n":              `of all, and of one export`,
		`{"v":1,"op":"close","id":-1,"clients":"cut"}` + "\n":              `cannot be understood`,
		strings.Repeat(" ", MaxRequest-30) + `{"v":1,"op":"certs"}` + "\n": `{"v":1,"result":{}}`,
		strings.Repeat("x", MaxRequest+8192) + "\n":                        `longer than`,
	} {
		got := raw(t, path, text)
		if !strings.Contains(got, want) || strings.Count(got, "\n") != strings.Count(text, "\n") && !strings.Contains(want, "newline") {
			t.Errorf("%.80q: %q, want %q", text, got, want)
		}
		for l := range strings.Lines(got) {
			var r Response
			if err := json.Unmarshal([]byte(l), &r); err != nil || r.Version != Version {
				t.Errorf("%.80q: %q: %v", text, l, err)
			}
		}
	}
}

// TestWaiting has a request wait until the limit that it brings, and others be
// served meanwhile.
func TestWaiting(t *testing.T) {
	waiting := make(chan struct{})
	f := &fake{block: func(ctx context.Context) error {
		waiting <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	path := start(t, f)
	c, other := mustDial(t, path), mustDial(t, path)
	done := make(chan error, 1)
	go func() { done <- c.Do(t.Context(), Request{Op: OpRemove, Export: "x", Seconds: 0.05}, nil) }()
	<-waiting
	if err := other.Do(t.Context(), Request{Op: OpCerts}, nil); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "not done after 50ms") {
			t.Errorf("the request ended by %v", err)
		}
	case <-time.After(limit):
		t.Fatal("the request does not end")
	}
	// A client that gives up.
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- c.Do(ctx, Request{Op: OpRemove, Export: "x", Seconds: 3600}, nil) }()
	<-waiting
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the request ended by %v", err)
	}
	// The server ends while a request waits: the cleanup of start checks that.
	go other.Do(t.Context(), Request{Op: OpRemove, Export: "x", Seconds: 3600}, nil)
	<-waiting
}

// TestLongWait: who waits for an answer for longer than a client may be idle gets it.
func TestLongWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{block: func(ctx context.Context) error {
			select {
			case <-time.After(5 * idleTime):
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}}
		here, there := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			serve(t.Context(), there, f, slog.New(slog.DiscardHandler))
		}()
		c := newClient(here, "test")
		for range 2 {
			if err := c.Do(t.Context(), Request{Op: OpMerge, Export: "x", Wait: true, Seconds: maxSeconds}, nil); err != nil {
				t.Error(err)
			}
		}
		// Behind an answer a client is idle, and not for ever.
		<-served
		c.Close()
	})
}

// TestCrowd wants one client too many to be told.
func TestCrowd(t *testing.T) {
	path := start(t, &fake{})
	for range maxClients {
		if err := mustDial(t, path).Do(t.Context(), Request{Op: OpCerts}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := mustDial(t, path).Do(t.Context(), Request{Op: OpCerts}, nil); err == nil || !strings.Contains(err.Error(), "all its 32 clients") {
		t.Errorf("one too many: %v", err)
	}
}

// TestSocket looks at who may use the socket, and what becomes of an old one.
func TestSocket(t *testing.T) {
	path := start(t, &fake{})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has the mode %v", info.Mode())
	}
	if _, err := Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("a second server: %v", err)
	}
	if _, err := Listen(t.Context(), "@abstract"); err == nil || !strings.Contains(err.Error(), "name a path") {
		t.Errorf("an abstract socket: %v", err)
	}
	if _, err := Listen(t.Context(), filepath.Join(filepath.Dir(path), "no", "folder")); err == nil {
		t.Error("a socket in no folder")
	}
	for _, x := range []struct {
		make func(path string) error
		want string
	}{
		{func(string) error { return nil }, "there is no control socket at"},
		{func(path string) error {
			l, err := net.Listen("unix", path)
			if err == nil {
				l.(*net.UnixListener).SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		}, "nobody listens"},
	} {
		old := filepath.Join(filepath.Dir(path), "old")
		if err := x.make(old); err != nil {
			t.Fatal(err)
		}
		if _, err := Dial(t.Context(), old); err == nil || !strings.Contains(err.Error(), x.want) && runtime.GOOS == "linux" {
			t.Errorf("%v, want %q", err, x.want)
		}
	}
	stale := filepath.Join(filepath.Dir(path), "old")
	l, err := Listen(t.Context(), stale)
	if err != nil {
		t.Fatalf("the socket of a dead server is in the way: %v", err)
	}
	l.Close()
}

// TestBadAnswers has a client meet servers that are none.
func TestBadAnswers(t *testing.T) {
	for _, x := range []struct{ answer, want string }{
		{"", "the server has hung up"},
		{"nonsense\n", "no answer"},
		{`{"v":9,"result":{}}` + "\n", "version 9"},
		{`{"v":1,"result":[]}` + "\n", "cannot be understood"},
		{`{"v":1`, "unexpected EOF"},
		{`{"v":2,"error":{"code":"bad-version","text":"too new"}}` + "\n", "too new"},
	} {
		here, there := net.Pipe()
		go func() {
			l := lines{r: there, limit: MaxRequest}
			l.read()
			io.WriteString(there, x.answer)
			there.Close()
		}()
		c := newClient(here, "test")
		if err := c.Do(t.Context(), Request{Op: OpStatus}, &Status{}); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%q: %v, want %q", x.answer, err, x.want)
		}
		c.Close()
	}
}

// slow is a reader that returns one byte at a time.
type slow struct{ io.Reader }

func (s slow) Read(p []byte) (int, error) { return s.Reader.Read(p[:min(len(p), 1)]) }

// FuzzRequest reads any bytes as requests, and any line as an answer.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"v":1,"op":"add","export":"x","keys":{"a":"b"},"seconds":1.5}` + "\n"))
	f.Add([]byte(`{"v":1,"op":"close","id":18446744073709551615,"clients":"cut"}` + "\n\n"))
	f.Add([]byte(`{"v":2}` + "\nabc"))
	f.Fuzz(func(t *testing.T, text []byte) {
		at := 0
		in := lines{r: slow{strings.NewReader(string(text))}, limit: 100}
		for {
			l, err := in.read()
			if err != nil {
				break
			}
			if string(text[at:at+len(l)]) != string(l) || text[at+len(l)] != '\n' {
				t.Fatalf("line %q at %d", l, at)
			}
			at += len(l) + 1
			r, bad := parse(l)
			if bad == nil && (r.Version != Version || r.Seconds < 0 || r.Seconds > maxSeconds) {
				t.Errorf("%q becomes %+v", l, r)
			}
			if bad == nil {
				h := &fake{}
				if _, bad := perform(t.Context(), r, h, slog.New(slog.DiscardHandler)); bad == nil && len(h.calls) != 1 {
					t.Errorf("%q is answered, and leads to %q", l, h.calls)
				}
			}
		}
		if !strings.Contains(string(text[min(at, len(text)):]), "\n") || len(text)-at > 100 {
			return
		}
		t.Errorf("%d of %d bytes were read", at, len(text))
	})
}
