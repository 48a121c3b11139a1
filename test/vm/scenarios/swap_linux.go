package scenarios

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/internal/memlock"
	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// LittleMemory is how much memory the machine of the scenarios in Little has, in MiB.
const LittleMemory = 256

// littleDisk is the disk of that machine.
const littleDisk = "/dev/vda"

// LittleDiskSize is the size of that machine's disk, in bytes.
const LittleDiskSize = 384 * mib

// Little returns the scenarios for a machine with little memory and one disk, in which
// nothing is that is not needed.
func Little() []guest.Scenario {
	return []guest.Scenario{
		{Name: "memory-locked", Series: all, Run: memoryLocked},
		{Name: "swap-outside", Series: all, Run: swapOutside, Host: swapHost},
		{Name: "swap-inside", Series: all, Run: swapInside},
		{Name: "swap-beside", Series: all, Run: swapBeside},
		{Name: "swap-beside-tcp", Series: all, Run: swapBesideTCP, Long: true},
		{Name: "swap-tls", Series: all, Long: true, Run: swapTLS, Host: swapTLSHost},
		{Name: "loopback-writes", Series: all, Run: loopbackWrites},
	}
}

// LittleModules returns the kernel modules of that machine.
func LittleModules() []string { return []string{"nbd", "virtio_blk", "ext4", "crc32c_generic"} }

// memoryLocked prepares this very process for swap, with all rights, and finds nothing
// missing.
func memoryLocked(t *guest.T) {
	before := vmReserve(t)
	warnings, err := memlock.Lock(memlock.Options{OOMScore: -900, RaiseReserve: true})
	t.Must(err, "prepare for swap")
	for _, w := range warnings {
		t.Errorf("warning: %v", w)
	}
	if now := vmReserve(t); now <= before || now < 20000 {
		t.Errorf("vm.min_free_kbytes was %d, and is %d", before, now)
	}
	marked, err := flushers(8)
	if err != nil || marked != 8 {
		t.Errorf("of 8 threads %d are marked, %v", marked, err)
	}
	status, err := os.ReadFile("/proc/self/status")
	t.Must(err, "status")
	if strings.Contains(string(status), "VmLck:\t       0 kB") {
		t.Error("nothing is locked")
	}
	if score, err := os.ReadFile("/proc/self/oom_score_adj"); err != nil || strings.TrimSpace(string(score)) != "-900" {
		t.Errorf("the out-of-memory score is %s, %v", score, err)
	}
}

// vmReserve returns vm.min_free_kbytes.
func vmReserve(t *guest.T) int {
	text, err := os.ReadFile("/proc/sys/vm/min_free_kbytes")
	t.Must(err, "vm.min_free_kbytes")
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	t.Must(err, "vm.min_free_kbytes")
	return n
}

// flushers starts n threads and counts those that are marked as ones that memory depends
// on.
func flushers(n int) (marked int, err error) {
	type answer struct {
		flag int
		err  error
	}
	answers, all := make(chan answer), make(chan struct{})
	for range n {
		go func() {
			runtime.LockOSThread()
			flag, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
			answers <- answer{flag, err}
			<-all // each needs a thread of its own until all have answered
		}()
	}
	for range n {
		a := <-answers
		marked += a.flag
		err = errors.Join(err, a.err)
	}
	close(all)
	return marked, err
}

// swapHost starts a server outside of the machine.
func swapHost(t testing.TB) []string {
	dir := harness.Dir(t)
	image := filepath.Join(dir, "swap.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 256*mib); err != nil {
		t.Fatal(err)
	}
	s := harness.StartIn(t, dir, harness.Config{Exports: "[swap]\nexportname = " + image + "\n", TCP: true, Plain: true})
	return []string{strconv.Itoa(s.Port), readmeBlock(t, "\nSwap, in three:\n")}
}

// swapOutside swaps on a device whose server is another machine. Where the kernel needs no
// help for that, it does so by the lines of README.
func swapOutside(t *guest.T) {
	host := guest.HostAddress + ":" + t.Args[0]
	var name unix.Utsname
	t.Must(unix.Uname(&name), "version of the kernel")
	if strings.HasPrefix(unix.ByteSliceToString(name.Release[:]), "6.1.") {
		swap(t, guest.Keep{URIs: []string{"nbd://" + host + "/swap"}, Args: []string{"-swap", "--raise-reserve"}}.Do(t, 0))
		return
	}
	t.Cleanup(func() { nbdClient(t, "detach", "--force", "nbd0") })
	for _, line := range readmeLines(t, t.Args[1]) {
		shell(t, strings.NewReplacer("server1", host, "/dev/nbd1", "/dev/nbd0").Replace(line))
	}
	off := guest.SwapOff(t, "/dev/nbd0")
	needMore(t)
	off()
	wantClient(t, 0, "", "detach", "/dev/nbd0")
}

// swapInside swaps on a device that the client serves itself, from the machine's disk:
// all of the way there is in memory that is short. Past the page cache, which would take
// as much memory for a page that is written as it sets free.
func swapInside(t *guest.T) {
	k := guest.Keep{Args: []string{"-swap", "--raise-reserve", "--serve", littleDisk}}.Do(t, 0)
	swap(t, k)
}

// swapBeside swaps on a device whose server is another process on the same machine.
func swapBeside(t *guest.T) {
	s := swapServer(t, false)
	k := guest.Keep{URIs: []string{s.URI("disk")}, Args: []string{"-swap", "--raise-reserve"}}.Do(t, 0)
	swap(t, k)
	s.Stop()
}

// swapBesideTCP does it over TCP.
func swapBesideTCP(t *guest.T) {
	s := swapServer(t, true)
	k := guest.Keep{URIs: []string{s.TCPURI("nbd", "disk")}, Args: []string{"-swap", "--raise-reserve"}}.Do(t, 0)
	swap(t, k)
	s.Stop()
}

// swapServer starts a server that is prepared for swap, and looks whether it is.
func swapServer(t *guest.T, tcp bool) *harness.Server {
	s := harness.Start(t, harness.Config{Generic: "swap = true\n", Exports: "[disk]\nexportname = file:" + littleDisk + ",direct\n", TCP: tcp})
	// It listens first, prepares itself then, and serves last.
	t.Await("the server serves", func() bool { return strings.Contains(s.Log(), "serving ") })
	proc := fmt.Sprintf("/proc/%d/", s.PID())
	status, err := os.ReadFile(proc + "status")
	t.Must(err, "status of the server")
	if strings.Contains(string(status), "VmLck:\t       0 kB") {
		t.Error("the server has locked nothing")
	}
	if score, err := os.ReadFile(proc + "oom_score_adj"); err != nil || strings.TrimSpace(string(score)) != "-1000" {
		t.Errorf("the server's out-of-memory score is %s, %v", score, err)
	}
	if log := s.Log(); strings.Contains(log, "not fit for swap") {
		t.Errorf("the server says:\n%s", log)
	}
	return s
}

// swapTLSHost starts a server outside of the machine that wants TLS.
func swapTLSHost(t testing.TB) []string {
	dir := harness.Dir(t)
	image := filepath.Join(dir, "swap.img")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 256*mib)); err != nil {
		t.Fatal(err)
	}
	authority := harness.NewAuthority(t, dir, "authority")
	s := harness.StartIn(t, dir, harness.Config{
		Generic: "force_tls = true\n" + harness.ServerLines(authority.Issue(t, "server", "server", guest.HostAddress), ""),
		Exports: "[disk]\nexportname = " + image + "\n", TCP: true, Plain: true,
	})
	certificate, err := os.ReadFile(authority.CA())
	if err != nil {
		t.Fatal(err)
	}
	return []string{strconv.Itoa(s.Port), base64.StdEncoding.EncodeToString(certificate)}
}

// swapTLS swaps on a device whose connection is encrypted: every page goes through a
// process that needs memory for it, which is promised to nobody.
func swapTLS(t *guest.T) {
	certificate, err := base64.StdEncoding.DecodeString(t.Args[1])
	t.Must(err, "certificate")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	t.Must(os.WriteFile(ca, certificate, 0o600), "certificate")
	k := guest.Keep{
		URIs: []string{fmt.Sprintf("nbds://%s:%s/disk", guest.HostAddress, t.Args[0])},
		Args: []string{"-swap", "--raise-reserve", "-A", ca},
	}.Do(t, 0)
	swap(t, k)
}

// swap swaps on a kernel device.
func swap(t *guest.T, k *guest.Keeper) {
	off := guest.SwapOn(t, k.Path)
	needMore(t)
	off()
	k.Detach()
}

// needMore runs a program that needs more memory than there is, and wants it to be swapped.
func needMore(t *guest.T) {
	available := guest.Memory(t, "MemAvailable")
	const more = 64
	inBefore, outBefore := guest.Swapped(t)
	guest.RunEater(t, available+more, 1)
	in, out := guest.Swapped(t)
	in, out = in-inBefore, out-outBefore
	t.Logf("%d MiB of memory, %d available, %d needed: %d pages were swapped out, %d in", guest.Memory(t, "MemTotal"), available, available+more, out, in)
	if pages := more << 20 / 4096; in < pages || out < pages {
		t.Errorf("%d pages were swapped out and %d in: too few to say that the swap works", out, in)
	}
}

// loopbackWrites writes more than there is memory, to a file system on a kernel device
// whose server is on the same machine: what the kernel holds back to be written can only
// be written through a process that needs memory for it.
func loopbackWrites(t *guest.T) {
	s := harness.Start(t, harness.Config{Exports: "[disk]\nexportname = " + littleDisk + "\n", TCP: true})
	k := guest.Keep{URIs: []string{fmt.Sprintf("nbd://127.0.0.1:%d/disk", s.Port)}, Args: []string{"-swap"}}.Do(t, 0)
	guest.Mkfs(t, k.Path)
	m := guest.Mount(t, k.Path, "")
	tree := guest.Tree{}
	const size, count = 8 * mib, LittleMemory / 8
	for i := range count {
		tree.Write(t, m.Dir, fmt.Sprintf("f%d", i), harness.Random(uint64(i), size))
	}
	m.Sync()
	guest.DropCaches(t)
	tree.Verify(t, m.Dir)
	m.Unmount()
	k.Detach()
	s.Stop()
}
