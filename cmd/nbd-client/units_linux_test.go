package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise"
)

// root is the folder of the module.
var root = filepath.Join("..", "..")

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// program builds nbd-client as releases are built.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nbd-client")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return path
}

// maxProgram is what an initramfs has room for, in bytes.
const maxProgram = 10 << 20

// TestStatic: the program for an initramfs is one file, and small.
func TestStatic(t *testing.T) {
	path := build(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", info.Size())
	if info.Size() > maxProgram {
		t.Errorf("nbd-client has %d bytes, more than %d", info.Size(), maxProgram)
	}
	if strings.Contains(read(t, path), "ld-linux") {
		t.Error("nbd-client is not static")
	}
}

// TestUnits lets systemd read the units.
func TestUnits(t *testing.T) {
	testgate.Requires(t, testgate.Program("systemd-analyze"))
	path := build(t)
	dir := t.TempDir()
	var units []string
	for _, name := range []string{"nbd-client.service", "nbd@.service"} {
		text := strings.ReplaceAll(read(t, filepath.Join(root, "systemd", name)), "/usr/sbin/nbd-client", path)
		to := filepath.Join(dir, strings.ReplaceAll(name, "@", "@nbd0"))
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		units = append(units, to)
	}
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

// TestUnitsRun: what the units and the rules start, the program understands.
func TestUnitsRun(t *testing.T) {
	w := newWorld(t)
	lines := 0
	for _, name := range []string{"systemd/nbd-client.service", "systemd/nbd@.service", "udev/60-nbd-client.rules"} {
		for _, m := range regexp.MustCompile(`/usr/sbin/nbd-client ([^"\n]*)`).FindAllStringSubmatch(read(t, filepath.Join(root, name)), -1) {
			lines++
			args := strings.Fields(strings.NewReplacer("%I", "nbd9", "%k", "nbd9").Replace(m[1]))
			if args[0] == "supervisor" {
				p := w.start(args...)
				p.signal(os.Interrupt)
				if status, _, errs := p.wait(); status != exitOK {
					t.Errorf("%s: %q: status %d: %s", name, args, status, errs)
				}
				continue
			}
			_, _, errs := w.run(args...)
			for _, bad := range []string{"unknown option", "operand too many", "nothing to do", "which device"} {
				if strings.Contains(errs, bad) {
					t.Errorf("%s: %q: %s", name, args, errs)
				}
			}
		}
	}
	if lines != 4 {
		t.Errorf("%d lines start nbd-client", lines)
	}
}

// TestRules reads the rules of udev: by udev itself where it can, and by a rough grammar.
func TestRules(t *testing.T) {
	rules := filepath.Join(root, "udev", "60-nbd-client.rules")
	item := regexp.MustCompile(`^([A-Z_]+(\{[A-Za-z_]+\})?)(==|!=|\+=|:=|=)"[^"]*"$`)
	labels, gotos := map[string]bool{}, []string{}
	for i, line := range strings.Split(read(t, rules), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		for _, word := range regexp.MustCompile(`,\s*`).Split(strings.TrimSuffix(line, ","), -1) {
			if !item.MatchString(word) {
				t.Errorf("line %d: %s", i+1, word)
			}
			if name, ok := strings.CutPrefix(word, `LABEL="`); ok {
				labels[name] = true
			}
			if name, ok := strings.CutPrefix(word, `GOTO="`); ok {
				gotos = append(gotos, name)
			}
		}
	}
	for _, name := range gotos {
		if !labels[name] {
			t.Errorf("GOTO %s leads nowhere", name)
		}
	}
	if base := filepath.Base(rules); base > "60-persistent-storage.rules" || base < "60-block.rules" {
		t.Errorf("%s is read too late or too early", base)
	}
	if testgate.Find("udevadm") == "" {
		return
	}
	if out, err := exec.Command("udevadm", "verify", "--help").CombinedOutput(); err != nil {
		t.Logf("udevadm cannot verify: %s", out)
		return
	}
	if out, err := exec.Command("udevadm", "verify", rules).CombinedOutput(); err != nil {
		t.Errorf("udevadm verify: %v: %s", err, out)
	}
}

// TestLinkName: names are safe, and never the same for two identifiers.
func TestLinkName(t *testing.T) {
	seen := map[string]string{}
	long := strings.Repeat("a", maxName)
	for identifier, want := range map[string]string{
		"mine":                  "mine",
		"nbd://h/disk":          `nbd:\x2f\x2fh\x2fdisk`,
		"..":                    `\x2e.`,
		`\x2e.`:                 `\x5cx2e.`,
		"a b%s\n$(x)":           `a\x20b\x25s\x0a\x24\x28x\x29`,
		"ä":                     `\xc3\xa4`,
		"/":                     `\x2f`,
		long:                    long,
		long + "a":              "",
		long + "b":              "",
		strings.Repeat("/", 61): "",
	} {
		got := linkName(identifier)
		if want != "" && got != want {
			t.Errorf("%q is %q, want %q", identifier, got, want)
		}
		if len(got) > maxName || strings.ContainsAny(got, "/ %$\n") || strings.HasPrefix(got, ".") {
			t.Errorf("%q is %q", identifier, got)
		}
		if other, twice := seen[got]; twice {
			t.Errorf("%q and %q are both %q", identifier, other, got)
		}
		seen[got] = identifier
	}
}

func TestUdev(t *testing.T) {
	w := newWorld(t)
	w.device(1).SetInfo(func(i *kernel.Info) { i.Identifier = "nbd://h/x" })
	if status, out, _ := w.run("--udev", "nbd1"); status != exitOK || out != `ID_NBD_NAME=nbd:\x2f\x2fh\x2fx`+"\n" {
		t.Errorf("status %d, %q", status, out)
	}
	if status, out, _ := w.run("--udev", "nbd0"); status != exitOK || out != "" {
		t.Errorf("without an identifier: status %d, %q", status, out)
	}
}

// TestGenerator: what systemd finds after the generator has run.
func TestGenerator(t *testing.T) {
	w := newWorld(t)
	w.write("nbdtab", "nbd0 server disk auto,swap\nnbd1 /run/sock x unix\nnbd2 nbd+unix:///x?socket=/s\nwrong line\nnbd3 nbd://h/x auto,identifier=my-x\n")
	dir := t.TempDir()
	status, out, errs := w.run("--systemd-generator", dir, dir, dir)
	if status != exitError || out != "" || !strings.Contains(errs, `nbdtab:4: "wrong" is not the name of an NBD device`) {
		t.Errorf("status %d, %s%s", status, out, errs)
	}
	var names []string
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			t.Error(err)
		} else if !d.IsDir() && !strings.Contains(path, "p1") && !strings.Contains(path, "nbd0p") {
			rel, _ := filepath.Rel(dir, path)
			names = append(names, filepath.ToSlash(rel))
		}
		return nil
	})
	for _, want := range []string{
		"dev-nbd0.device.wants/nbd@nbd0.service", "remote-fs.target.wants/nbd@nbd0.service", "swap.target.wants/nbd@nbd0.service", "nbd@nbd0.service.d/50-nbdtab.conf",
		`dev-disk-by\x2dnbd-my\x2dx.device.wants/nbd@nbd3.service`, `dev-disk-by\x2dnbd-my\x2dx\x2dpart2.device.wants/nbd@nbd3.service`,
		"dev-nbd1.device.wants/nbd@nbd1.service", "dev-nbd1p2.device.wants/nbd@nbd1.service", "remote-fs.target.wants/nbd@nbd3.service",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing", want)
		}
	}
	for _, name := range names {
		if strings.HasPrefix(name, "remote-fs.target.wants/nbd@nbd1") || strings.HasPrefix(name, "swap.target.wants/nbd@nbd3") {
			t.Errorf("%s is there", name)
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "dev-nbd0.device.wants", "nbd@nbd0.service")); err != nil || to != "/usr/lib/systemd/system/nbd@.service" {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	for name, network := range map[string]bool{"nbd0": true, "nbd1": false, "nbd2": false, "nbd3": true} {
		text := read(t, filepath.Join(dir, "nbd@"+name+".service.d", "50-nbdtab.conf"))
		if strings.Contains(text, "network-online.target") != network {
			t.Errorf("%s: %s", name, text)
		}
		for _, swap := range []string{name, name + "p1"} {
			if strings.Contains(text, "\nBefore=dev-"+swap+".swap\n") != (name == "nbd0") {
				t.Errorf("%s: %s", name, text)
			}
		}
	}
	// A second time changes nothing.
	if status, _, errs := w.run("--systemd-generator", dir); status != exitError || strings.Contains(errs, "exists") {
		t.Errorf("again: status %d, %s", status, errs)
	}
	if !isGenerator("/usr/lib/systemd/system-generators/nbd-generator") || isGenerator("/usr/sbin/nbd-client") {
		t.Error("the generator is not known by its name")
	}
}

// TestLongIdentifier: a name that is too long for a unit is left out.
func TestLongIdentifier(t *testing.T) {
	w := newWorld(t)
	w.write("nbdtab", "nbd0 server disk auto,swap,identifier="+strings.Repeat("-", maxName)+"\n")
	dir := t.TempDir()
	if status, _, errs := w.run("--systemd-generator", dir); status != exitOK {
		t.Errorf("status %d, %s", status, errs)
	}
	if text := read(t, filepath.Join(dir, "nbd@nbd0.service.d", "50-nbdtab.conf")); strings.Contains(text, "by\\x2dnbd") {
		t.Error(text)
	}
}

// TestGoingDown: when the machine goes down, what nobody uses is detached.
func TestGoingDown(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20, "mounted": 1 << 20})
	w.write("nbdtab", fmt.Sprintf("nbd0 %s auto\nnbd1 %s auto\n", s.uri("disk"), s.uri("mounted")))
	p := w.start("supervisor")
	p.await("attached device=/dev/nbd0")
	p.await("attached device=/dev/nbd1")
	w.device(1).SetInfo(func(i *kernel.Info) { i.Mounts = []string{"/mnt"} })
	w.stopping = true
	p.signal(syscall.SIGTERM)
	if status, _, errs := p.wait(); status != exitOK || w.attached(0) || !w.attached(1) {
		t.Errorf("status %d, the idle device is attached: %t, the mounted one: %t; %s", status, w.attached(0), w.attached(1), errs)
	}
}

// TestStay: under a service manager, a process that does not keep its device lives as long
// as that is attached, and fails when nobody keeps it any more.
func TestStay(t *testing.T) {
	testgate.Requires(t, testgate.Program("sleep"))
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	p := w.start("-n", s.uri("disk"), "nbd1")
	p.await("/dev/nbd1\n")
	p.signal(syscall.SIGTERM)
	p.wait()
	keeper := exec.Command(testgate.Find("sleep"), "3600")
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { keeper.Process.Kill(); keeper.Wait() })
	defer end()
	w.keptBy(1, keeper.Process.Pid)
	w.env["NOTIFY_SOCKET"] = "@nobody"
	q := w.start("-n", s.uri("disk"), "nbd1")
	q.await("/dev/nbd1\n")
	q.signal(syscall.SIGTERM)
	if status, _, errs := q.wait(); status != exitOK || !w.attached(1) {
		t.Errorf("after SIGTERM: status %d, %s", status, errs)
	}
	q = w.start("-n", s.uri("disk"), "nbd1")
	q.await("/dev/nbd1\n")
	end()
	if status, _, errs := q.wait(); status != exitError || !strings.Contains(errs, "kept by no process") || !w.attached(1) {
		t.Errorf("after the keeper's end: status %d, %s", status, errs)
	}
	alone := w.start("-n", "--no-supervise", s.uri("disk"), "nbd2")
	alone.await("/dev/nbd2\n")
	if status, _, errs := w.run("detach", "nbd2"); status != exitOK {
		t.Errorf("detach: status %d, %s", status, errs)
	}
	if status, _, errs := alone.wait(); status != exitOK {
		t.Errorf("after the device was detached: status %d, %s", status, errs)
	}
}

// keptBy lets a device's file say that another process keeps it.
func (w *world) keptBy(i kernel.Index, pid int) {
	w.t.Helper()
	states, err := supervise.States(filepath.Join(w.dir, "run"))
	if err != nil || len(states) != 1 || states[0].Index != i {
		w.t.Fatalf("states: %+v, %v", states, err)
	}
	stat := read(w.t, fmt.Sprintf("/proc/%d/stat", pid))
	_, fields, _ := strings.Cut(stat, ") ")
	start, err := strconv.ParseUint(strings.Fields(fields)[22-3], 10, 64) // proc(5)
	if err != nil {
		w.t.Fatal(err)
	}
	st := states[0]
	st.Phase, st.Process = supervise.Attached, supervise.Process{PID: pid, Start: start}
	text, err := json.Marshal(st)
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("run/"+i.Name()+".json", string(text))
}
