//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/control"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// limit bounds waits for what must happen. Nothing is measured by it.
const limit = 60 * time.Second

// nbd runs the program, and returns what it says and its status.
func nbd(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, harness.Tool(t, "nbd"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		t.Fatalf("nbd %q does not end", args)
	case errors.As(err, &exit):
		status = exit.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	return out.String(), errs.String(), status
}

// must runs the program, which must succeed, and returns its output.
func must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, status := nbd(t, args...)
	if status != 0 || errs != "" {
		t.Fatalf("nbd %q: status %d\n%s%s", args, status, out, errs)
	}
	return out
}

// refused runs the program, which must fail, and say why, and nothing else.
func refused(t *testing.T, status int, want string, args ...string) {
	t.Helper()
	out, errs, got := nbd(t, args...)
	if got != status || !strings.Contains(errs, want) || out != "" {
		t.Errorf("nbd %q: status %d, want %d and %q\n%s%s", args, got, status, want, out, errs)
	}
}

func TestUsage(t *testing.T) {
	if out := must(t, "--version"); !strings.HasPrefix(out, "nbd ") {
		t.Errorf("--version says %q", out)
	}
	for _, args := range [][]string{{}, {"--help"}, {"ctl"}, {"help", "ctl", "add"}, {"ctl", "add", "--help"}, {"trplay", "--help"}} {
		if out := must(t, args...); !strings.Contains(out, "Usage:") {
			t.Errorf("nbd %q says %q", args, out)
		}
	}
	refused(t, 2, `there is no command "nbd trdum"; did you mean "nbd trdump"?`, "trdum")
	refused(t, 2, `there is no command "nbd ctl lst"; did you mean "nbd ctl list"?`, "ctl", "lst")
	refused(t, 2, `usage: nbd trplay [OPTION ...] FILE TARGET`, "trplay", "file")
	refused(t, 2, "unknown flag: --nonsense", "trdump", "--nonsense")
	refused(t, 2, "nbd: --drain and --cut exclude each other", "ctl", "remove", "x", "--drain", "--cut")
	refused(t, 1, "is not of the form KEY=VALUE", "ctl", "add", "x", "y")
	refused(t, 1, "is given twice", "ctl", "add", "x", "a=1", "a=2")
	refused(t, 1, "is no number of a connection", "ctl", "close", "x")
	refused(t, 1, "--timeout is 0s", "ctl", "remove", "x", "--timeout=0")
	nowhere := filepath.Join(t.TempDir(), "c")
	refused(t, 5, "there is no control socket at "+nowhere+": start nbd-server with --control", "ctl", "list", "-s", nowhere)
	refused(t, 1, "no such file", "trdump", filepath.Join(t.TempDir(), "log"))
	refused(t, 1, "--block-size is 0", "trplay", "-b", "0", "x", "y")
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := must(t, "completion", shell); !strings.Contains(out, "nbd") || len(out) < 1000 {
			t.Errorf("%s: %d bytes", shell, len(out))
		}
	}
	dir := t.TempDir()
	for _, name := range []string{"disk.img", "other"} {
		harness.Image(t, dir, name, nil)
	}
	for line, want := range map[string]string{
		"ctl status |": ":4\n", "ctl connections |": ":4\n", "trdump |": ":0\n", // files only there
		"ctl add x |readonl": "readonly=\tRefuse writes.\n:6\n", "ctl add x readonly=true |readon": ":6\n", "ctl add |": ":4\n",
		"ctl change x |readonly=":                "readonly=true\nreadonly=false\n:4\n",
		"ctl change x |exportname=" + dir + "/d": "exportname=" + dir + "/disk.img\n:4\n",
	} {
		words, last, _ := strings.Cut(line, "|")
		if out, _, _ := nbd(t, append(append([]string{"__complete"}, strings.Fields(words)...), last)...); out != want {
			t.Errorf("%s: %q, want %q", line, out, want)
		}
	}
	testgate.Requires(t, testgate.Program("bash"))
	cmd := exec.Command("bash", "-n")
	cmd.Stdin = strings.NewReader(must(t, "completion", "bash"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("bash does not understand its script: %v\n%s", err, out)
	}
}

// serve starts a server with a control socket, whose path it returns.
func serve(t *testing.T, generic, exports string) (s *harness.Server, socket string) {
	t.Helper()
	dir := harness.Dir(t)
	socket = filepath.Join(dir, "control")
	t.Setenv("NBD_CONTROL", socket)
	s = harness.StartIn(t, dir, harness.Config{Generic: "control = " + socket + "\n" + generic, Exports: exports})
	s.AwaitListening("unix", socket) // it is opened last
	return s, socket
}

func dial(t *testing.T, s *harness.Server, export string) *client.Conn {
	t.Helper()
	c, err := client.Dial(t.Context(), s.URI(export), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// printed has the commands of nbd ctl that have printed JSON.
var printed = map[string]bool{}

// list decodes what "nbd ctl … --json" prints.
func list[T any](t *testing.T, args ...string) (v T) {
	t.Helper()
	printed[args[0]] = true
	out := must(t, append([]string{"ctl", "--json"}, args...)...)
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return v
}

// TestCtl goes through all commands.
func TestCtl(t *testing.T) {
	s, socket := serve(t, "", "[a]\nexportname = memory:1M\n")
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the control socket: %v, %v", info.Mode(), err)
	}
	status := list[control.Status](t, "status")
	if status.PID != s.PID() || status.Exports != 1 || status.Connections != 0 || len(status.Config) != 1 || status.Config[0] != s.File {
		t.Errorf("%+v", status)
	}
	if len(status.Listening) != 1 || status.Listening[0] != s.Socket || status.Reload != nil {
		t.Errorf("%+v", status)
	}
	if out := must(t, "ctl", "status"); !strings.Contains(out, fmt.Sprint(s.PID())) {
		t.Errorf("status prints %q", out)
	}
	c := dial(t, s, "a")
	if err := c.WriteAt(t.Context(), make([]byte, 4096), 0, 0); err != nil {
		t.Fatal(err)
	}
	var conns []control.Connection
	for end := time.Now().Add(limit); len(conns) != 1 || conns[0].Written != 4096; conns = list[[]control.Connection](t, "connections") {
		if time.Now().After(end) {
			t.Fatalf("the connections are %+v", conns)
		}
	}
	if x := conns[0]; x.Export != "a" || x.Client != "unix" || x.Phase != "transmission" || x.Requests != 1 || x.Replies != "extended" {
		t.Errorf("%+v", x)
	}
	if p := conns[0].Process; runtime.GOOS == "linux" && (p == nil || p.PID != os.Getpid() || int(p.UID) != os.Getuid() || int(p.GID) != os.Getgid()) {
		t.Errorf("the client's process is %+v", p)
	}
	if out := must(t, "ctl", "connections"); !strings.Contains(out, "4.0K") || strings.Count(out, "\n") != 2 {
		t.Errorf("connections prints\n%s", out)
	}
	// A word that is no number is found before anything is closed; one that is not there is
	// no reason to leave the others.
	refused(t, 1, `"x" is no number of a connection`, "ctl", "close", fmt.Sprint(conns[0].ID), "x")
	if err := c.Flush(t.Context()); err != nil {
		t.Errorf("a command line with a mistake has closed a connection: %v", err)
	}
	refused(t, 3, "there is no such connection: 999", "ctl", "close", "999", fmt.Sprint(conns[0].ID))
	for end := time.Now().Add(limit); c.Flush(t.Context()) == nil; { // the server may be reading just now
		if time.Now().After(end) {
			t.Fatal("the connection still serves")
		}
	}
	refused(t, 3, `there is no such connection: 999; "nbd ctl list"`, "ctl", "close", "999")
	refused(t, 3, `{"error":{"code":"not-found","text":"there is no such connection: 999;`, "ctl", "close", "--json", "999")
	c = dial(t, s, "a")
	for n := 0; n != 1; n = len(conns) { // the first one may not have ended yet
		conns = list[[]control.Connection](t, "connections")
	}
	if list[struct{}](t, "close", "--cut", fmt.Sprint(conns[0].ID)); c.Flush(t.Context()) == nil {
		t.Error("the connection still serves")
	}

	ctlExports(t, s)

	ctlMerge(t, s)
	refused(t, 1, "there are no certificates", "ctl", "certs")
	refused(t, 1, "there are no certificates", "ctl", "certs", "--json")
	out, _, _ := nbd(t, "__complete", "ctl", "")
	for line := range strings.Lines(out) {
		if name, _, ok := strings.Cut(line, "\t"); ok && name != "certs" && !printed[name] {
			t.Errorf("nbd ctl %s was not tried with --json", name)
		}
	}
}

// ctlMerge wants what was written to be in the image once it was merged, and not before.
func ctlMerge(t *testing.T, s *harness.Server) {
	refused(t, 1, "nothing to merge", "ctl", "merge", "a")
	if out := must(t, "ctl", "merge"); !strings.HasPrefix(out, "there is nothing to merge") {
		t.Errorf("merge says %q", out)
	}
	images, want := map[string]string{}, map[string][]byte{}
	for _, name := range []string{"one", "two", "three", "four"} {
		want[name] = make([]byte, 1<<20)
		images[name] = harness.Image(t, t.TempDir(), "image", want[name])
		must(t, "ctl", "add", name, "exportname="+images[name], "waitfile=true")
		if err := dial(t, s, name).WriteAt(t.Context(), []byte(name), 70000, 0); err != nil {
			t.Fatal(err)
		}
		harness.Same(t, images[name], want[name])
		copy(want[name][70000:], name)
	}
	if x := waiting(t, "one"); x.State != "collecting" || x.Waiting < 3 {
		t.Errorf("%+v", x)
	}
	if out := must(t, "ctl", "merge", "one"); !strings.HasPrefix(out, `"one": begun, with `) {
		t.Errorf("merge says %q", out)
	}
	for end := time.Now().Add(limit); waiting(t, "one").State != "merged"; {
		if time.Now().After(end) {
			t.Fatal("it is not merged")
		}
	}
	if out := must(t, "ctl", "merge", "--wait", "two"); out != "\"two\": merged\n" {
		t.Errorf("merge says %q", out)
	}
	if x := waiting(t, "three"); x.State != "collecting" {
		t.Errorf("another one was merged, too: %+v", x)
	}
	if done := list[[]control.Merge](t, "merge", "--wait"); len(done) != 4 || done[3].Export != "four" || done[3].State != "merged" {
		t.Errorf("%+v", done)
	}
	for name, image := range images {
		harness.Same(t, image, want[name])
	}
	refused(t, 3, "there is no such export", "ctl", "merge", "zzz")
	ctlMergeFails(t, s)
}

// ctlMergeFails has a merge fail: who waits for it is told, and the list tells it.
func ctlMergeFails(t *testing.T, s *harness.Server) {
	dir := t.TempDir()
	must(t, "ctl", "add", "five", "exportname="+filepath.Join(dir, "image"), "waitfile="+filepath.Join(dir, "diff"), "filesize=1048576")
	if err := dial(t, s, "five").WriteAt(t.Context(), make([]byte, 4096), 0, 0); err != nil {
		t.Fatal(err)
	}
	refused(t, 1, "no such file", "ctl", "merge", "--wait", "five") // the image has not come yet
	if x := waiting(t, "five"); x.State != "collecting" || !strings.Contains(x.Error, "no such file") {
		t.Errorf("%+v", x)
	}
	harness.Same(t, harness.Image(t, dir, "image", make([]byte, 1<<20)), make([]byte, 1<<20))
	must(t, "ctl", "merge", "--wait", "five")
	if x := waiting(t, "five"); x.State != "merged" || x.Error != "" {
		t.Errorf("%+v", x)
	}
}

// waiting returns how far an export is merged.
func waiting(t *testing.T, name string) control.Merge {
	t.Helper()
	for _, x := range list[[]control.Export](t, "list") {
		if x.Name == name && x.Merge != nil {
			return *x.Merge
		}
	}
	t.Fatalf("of %s nothing is known", name)
	return control.Merge{}
}

// TestCtlConnections wants to know since when a client is there, what it has read, and
// what it waits for.
func TestCtlConnections(t *testing.T) {
	s, _ := serve(t, "", "[slow]\nexportname = memory:1M | delay:trim=1h\n")
	before := time.Now()
	c := dial(t, s, "slow")
	connected := time.Now()
	if err := c.ReadAt(t.Context(), make([]byte, 1536), 0); err != nil {
		t.Fatal(err)
	}
	trimmed := make(chan error, 1)
	go func() { trimmed <- c.Trim(t.Context(), 0, 4096, 0) }()
	var x control.Connection
	for end := time.Now().Add(limit); x.InFlight != 1 || x.Read != 1536; x = list[[]control.Connection](t, "connections")[0] {
		if time.Now().After(end) {
			t.Fatalf("the connection is %+v", x)
		}
	}
	if x.Since.Before(before) || x.Since.After(connected) || x.Requests != 2 || x.Written != 0 {
		t.Errorf("%+v; want it since %v to %v, and two requests", x, before, connected)
	}
	if out := must(t, "ctl", "connections"); !strings.Contains(out, "1.5K") {
		t.Errorf("connections prints\n%s", out)
	}
	s.Kill() // it would wait for the device
	if <-trimmed == nil {
		t.Error("what waits for an hour has been done")
	}
}

// ctlExports adds, changes and removes exports.
func ctlExports(t *testing.T, s *harness.Server) {
	if out := must(t, "ctl", "add", "b", "exportname=memory:2M", "readonly=true"); out != "\"b\": added\n" {
		t.Errorf("add prints %q", out)
	}
	exports := list[[]control.Export](t, "list")
	if len(exports) != 2 || exports[1].Name != "b" || exports[1].Size != 2<<20 || !exports[1].ReadOnly || exports[1].Origin != "run time" || !strings.HasPrefix(exports[0].Origin, s.File+":") {
		t.Errorf("%+v", exports)
	}
	if out := must(t, "ctl", "list"); !strings.Contains(out, "serving") || !strings.Contains(out, "2.0M") {
		t.Errorf("list prints\n%s", out)
	}
	if out, _, _ := nbd(t, "__complete", "ctl", "remove", ""); !strings.Contains(out, "b\tserving\n") {
		t.Errorf("completion offers %q", out)
	}
	refused(t, 4, `"nbd ctl change" changes it`, "ctl", "add", "b", "exportname=memory:2M")
	refused(t, 1, `did you mean "readonly"?`, "ctl", "add", "c", "exportname=memory:2M", "readonyl=true")
	refused(t, 1, "lacks exportname", "ctl", "add", "c", "readonly=true")
	refused(t, 1, "no such file", "ctl", "add", "c", "exportname=/no/such/file")
	refused(t, 3, "there is no such export", "ctl", "change", "c", "readonly=true")
	refused(t, 3, "there is no such export", "ctl", "remove", "c")

	if x := list[control.Section](t, "show", "b"); x.Name != "b" || x.State != "serving" || x.Origin != "run time" || len(x.Keys) != 2 || x.Keys["exportname"] != "memory:2M" || x.Keys["readonly"] != "true" {
		t.Errorf("%+v", x)
	}
	if out := must(t, "ctl", "show", "b"); out != "# from \"run time\"\n[b]\n\texportname = memory:2M\n\treadonly = true\n" {
		t.Errorf("show prints %q", out)
	}
	refused(t, 3, "there is no such export", "ctl", "show", "c")
	b := dial(t, s, "b")
	if out := must(t, "ctl", "change", "b", "exportname=memory:3M"); !strings.Contains(out, "pending") {
		t.Errorf("change prints %q", out)
	}
	if b.Size() != 2<<20 || list[[]control.Export](t, "list")[1].State != "pending" {
		t.Error("the export is not pending")
	}
	if out := must(t, "ctl", "show", "b"); !strings.Contains(out, "# pending") || !strings.Contains(out, "memory:3M") {
		t.Errorf("show prints %q", out)
	}
	must(t, "ctl", "change", "b", "readonly=", "exportname=memory:4M", "--drain")
	again := dial(t, s, "b")
	if again.Size() != 4<<20 || again.Caps().ReadOnly {
		t.Errorf("the export has %d bytes, read-only %v", again.Size(), again.Caps().ReadOnly)
	}
	if out := must(t, "ctl", "remove", "b", "--cut"); out != "\"b\": removed\n" {
		t.Errorf("remove prints %q", out)
	}
	if _, err := client.Dial(t.Context(), s.URI("b"), nil); err == nil {
		t.Error("the export is still there")
	}
	// The file is the truth at a reload.
	must(t, "ctl", "add", "c", "exportname=memory:1M")
	if done := list[control.Changes](t, "change", "a", "readonly=true"); fmt.Sprint(done.Changed) != "[a]" {
		t.Errorf("%+v", done)
	}
	s.WriteConfig(t, "control = "+os.Getenv("NBD_CONTROL"), "[a]\nexportname = memory:1M\n[d]\nexportname = memory:1M\n")
	done := list[control.Changes](t, "reload")
	if fmt.Sprint(done.Added, done.Removed, done.Changed) != "[d] [c] [a]" {
		t.Errorf("%+v", done)
	}
	if out := must(t, "ctl", "reload"); out != "nothing has changed\n" {
		t.Errorf("reload prints %q", out)
	}
	if x := list[control.Status](t, "status"); x.Reload == nil || x.Reload.Error != "" {
		t.Errorf("behind a reload: %+v", x.Reload)
	}
	list[control.Changes](t, "add", "e", "exportname=memory:1M")
	if done := list[control.Changes](t, "remove", "e"); fmt.Sprint(done.Removed) != "[e]" {
		t.Errorf("%+v", done)
	}
	s.WriteConfig(t, "", "[a]\nexportname = memory:1M\nreadonly = perhaps\n")
	refused(t, 1, `"perhaps" is not a boolean`, "ctl", "reload")
	if x := list[control.Status](t, "status"); x.Reload == nil || !strings.Contains(x.Reload.Error, `"perhaps" is not a boolean`) {
		t.Errorf("behind a bad reload: %+v", x.Reload)
	}
	if out := must(t, "ctl", "status"); !strings.Contains(out, "NOT taken over") {
		t.Errorf("behind a bad reload: %s", out)
	}
	if n := len(list[[]control.Export](t, "list")); n != 2 {
		t.Errorf("%d exports behind a bad reload", n)
	}
}

// TestCtlUnanswered: a server that does not answer is not waited for for ever.
func TestCtlUnanswered(t *testing.T) {
	socket := filepath.Join(harness.Dir(t), "control")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nobody accepts
	for _, args := range [][]string{{"status"}, {"list"}, {"close", "1"}, {"change", "x"}, {"certs"}, {"merge", "x"}} {
		args = append([]string{"ctl", "--socket", socket, "--timeout", "1ms"}, args...)
		refused(t, 5, "the server has not answered for 1ms", args...)
	}
	refused(t, 5, `{"error":{"code":"unanswered","text":"list on `, "ctl", "--json", "--socket", socket, "--timeout", "1ms", "list")
}

// TestCtlTLS replaces certificates under a running server.
func TestCtlTLS(t *testing.T) {
	dir := harness.Dir(t)
	socket := filepath.Join(dir, "control")
	t.Setenv("NBD_CONTROL", socket)
	first, second := harness.NewAuthority(t, dir, "first"), harness.NewAuthority(t, dir, "second")
	server := first.Issue(t, "server", "server", "localhost")
	s := harness.StartIn(t, dir, harness.Config{
		TCP: true, Generic: "control = " + socket + "\n" + harness.ServerLines(server, ""), Exports: "[a]\nexportname = memory:1M\n",
	})
	s.AwaitListening("unix", socket)
	connect := func(a *harness.Authority) (*client.Conn, error) {
		return client.Dial(t.Context(), s.TCPURI("nbds", "a")+"?tls-certificates="+filepath.Dir(a.CA()), nil)
	}
	old, err := connect(first)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if c := list[[]control.Connection](t, "connections")[0]; c.TLS != "TLS 1.3" {
		t.Errorf("the connection is %+v", c)
	}
	other := second.Issue(t, "other", "server", "localhost")
	for _, name := range []string{"server-cert.pem", "server-key.pem"} {
		if err := os.Rename(filepath.Join(other, name), filepath.Join(server, name)); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "ctl", "certs")
	list[struct{}](t, "certs")
	if err := old.Flush(t.Context()); err != nil {
		t.Errorf("the old connection: %v", err)
	}
	if _, err := connect(first); err == nil {
		t.Error("the old certificate is still shown")
	}
	c, err := connect(second)
	if err != nil {
		t.Fatalf("the new certificate is not shown: %v", err)
	}
	c.Close()
	if err := os.WriteFile(filepath.Join(server, "server-cert.pem"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, 1, "certfile", "ctl", "certs")
	if c, err = connect(second); err != nil {
		t.Fatalf("after a bad certificate: %v", err)
	}
	c.Close()
}

// TestCtlUnderLoad changes exports by the control socket while clients write and
// read: every write that was answered must be there.
func TestCtlUnderLoad(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s, socket := serve(t, "", "[a]\nexportname = "+disk+"\n")
	var stop atomic.Bool
	var done sync.WaitGroup
	var answered atomic.Int64
	for i := range int64(3) {
		done.Go(func() { persist(t, s.URI("a"), i<<18, &stop, &answered) })
	}
	ctl, err := control.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	for i := range 30 {
		for before := answered.Load(); answered.Load() < before+20 && !t.Failed(); runtime.Gosched() {
		}
		drain, cut := control.Drain.String(), control.Cut.String()
		memory := map[string]string{"exportname": "memory:1M"}
		for _, r := range []control.Request{
			{Op: control.OpAdd, Export: "other", Keys: memory},
			{Op: control.OpChange, Export: "a", Keys: map[string]string{"sync": fmt.Sprint(i%2 == 0)}, Clients: drain},
			{Op: control.OpChange, Export: "other", Keys: map[string]string{"exportname": "memory:2M"}, Clients: cut},
			{Op: control.OpRemove, Export: "other", Clients: drain},
		} {
			if err := ctl.Do(t.Context(), r, nil); err != nil {
				t.Errorf("round %d: %s: %v", i, r.Op, err)
			}
		}
		var conns []control.Connection
		if err := ctl.Do(t.Context(), control.Request{Op: control.OpConnections}, &conns); err != nil {
			t.Error(err)
		}
		for _, c := range conns {
			err := ctl.Do(t.Context(), control.Request{Op: control.OpClose, ID: c.ID, Clients: drain}, nil)
			if err != nil && !strings.Contains(err.Error(), "no such connection") {
				t.Error(err)
			}
		}
		if i%5 == 0 { // it ends what is not in the file, so not beside the changes
			if err := ctl.Do(t.Context(), control.Request{Op: control.OpReload}, nil); err != nil {
				t.Errorf("round %d: reload: %v", i, err)
			}
		}
	}
	stop.Store(true)
	done.Wait()
}

// persist writes to a stretch of an export, over one connection after the other, and
// reads what was answered.
func persist(t *testing.T, uri string, off int64, stop *atomic.Bool, answered *atomic.Int64) {
	page, got := make([]byte, 4096), make([]byte, 4096)
	for n := 0; !stop.Load() && !t.Failed(); {
		c, err := client.Dial(t.Context(), uri, nil)
		if err != nil { // refused while the export is being changed
			runtime.Gosched()
			continue
		}
		for !stop.Load() {
			for i := range page {
				page[i] = byte(n)
			}
			at := off + int64(n%16)*4096
			if c.WriteAt(t.Context(), page, at, block.Flags(0)) != nil {
				break
			}
			answered.Add(1)
			if c.ReadAt(t.Context(), got, at) != nil {
				break
			}
			if !bytes.Equal(got, page) {
				t.Errorf("write %d was answered, and is not there", n)
				return
			}
			n++
		}
		c.Close()
	}
}

// TestLogs has a server log, rotates the log, prints and plays it.
func TestLogs(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	s, _ := serve(t, "", "[a]\nexportname = memory:1M\ntransactionlog = "+log+"\ndatalog = true\n[copy]\nexportname = memory:1M\n")
	c := dial(t, s, "a")
	ctx := t.Context()
	for i := range int64(40) {
		if err := c.WriteAt(ctx, bytes.Repeat([]byte{byte(i + 1)}, int(4096+i*3000)), i*9000, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(c.WriteZeroes(ctx, 5000, 70000, 0), c.Trim(ctx, 0, 4096, 0), c.Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	must(t, "ctl", "reload")
	if err := c.WriteAt(ctx, []byte("the last write"), 100000, block.FUA); err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, 1<<20)
	if err := c.ReadAt(ctx, whole, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	s.Stop()
	s.Restart(t) // the contents are gone, the logs are there
	defer s.Stop()
	for _, name := range []string{log + ".1", log} {
		if out := must(t, "trdump", name); !strings.Contains(out, "NBD_CMD_WRITE") || strings.Contains(out, "UNKNOWN") || strings.Contains(out, "missing") {
			t.Errorf("%s holds\n%s", name, out)
		}
		for line := range strings.Lines(must(t, "trdump", "--json", name)) {
			if !json.Valid([]byte(line)) {
				t.Errorf("no JSON: %s", line)
			}
		}
		if out := must(t, "trplay", name, s.URI("copy")); !strings.Contains(out, "changes of") {
			t.Errorf("trplay prints %q", out)
		}
	}
	played := make([]byte, 1<<20)
	if err := dial(t, s, "copy").ReadAt(ctx, played, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(played, whole) {
		t.Error("the copy differs from what was logged")
	}
	// The same into an image, up to the first ten blocks.
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, status := nbd(t, "trplay", "-v", "--json", "--max-blocks", "10", log+".1", image)
	if status != 0 || !json.Valid([]byte(out)) || !strings.Contains(errs, "NBD_CMD_WRITE of 4096 bytes at 0") {
		t.Errorf("trplay -v --json: status %d, %q, %q", status, out, errs)
	}
	if out := must(t, "trplay", "-v", "--max-blocks", "10", log+".1", image); !strings.Contains(out, "stopped") || !strings.Contains(out, "NBD_CMD_WRITE of 4096 bytes at 0") {
		t.Errorf("trplay prints %q", out)
	}
	got, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	copy(want, bytes.Repeat([]byte{1}, 4096))
	copy(want[9000:], bytes.Repeat([]byte{2}, 1024))
	if !bytes.Equal(got, want) {
		t.Error("the image is not what the first blocks make of it")
	}
	refused(t, 1, "no such file", "trplay", log, "nbd+unix:///a?socket="+filepath.Join(t.TempDir(), "nobody"))
}
