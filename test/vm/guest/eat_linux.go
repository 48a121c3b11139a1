package guest

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EatWord is the argument by which init is a program that needs memory; see Eat.
const EatWord = "eat"

// Eat is such a program. Its arguments are how many MiB it needs, and how often it goes
// through them: it writes every page, and reads it back on the next round, where it must
// hold what was written.
func Eat(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("eat MIB ROUNDS, not %q", args)
	}
	mib, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	rounds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	memory, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	const page = 4096
	for round := range rounds + 1 {
		for off := 0; off < len(memory); off += page {
			p := memory[off:][:page]
			number := uint64(off / page)
			if round > 0 && !holds(p, number, uint64(round-1)) {
				return fmt.Errorf("in round %d, page %d does not hold what was written", round, number)
			}
			fillPage(p, number, uint64(round))
		}
	}
	return nil
}

// fillPage writes what depends on the page and the round.
func fillPage(p []byte, page, round uint64) {
	x := page*0x9e3779b97f4a7c15 + round + 1
	for i := 0; i < len(p); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
}

// holds reports whether a page holds what fillPage has written.
func holds(p []byte, page, round uint64) bool {
	var want [4096]byte
	fillPage(want[:], page, round)
	return string(p) == string(want[:])
}

// RunEater runs the program, which must end with success.
func RunEater(t *T, mib, rounds int) {
	cmd := exec.Command("/init", EatWord, strconv.Itoa(mib), strconv.Itoa(rounds))
	cmd.Env = Environment
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("a program that needs %d MiB: %v\n%s", mib, err, out)
	}
}

// Memory returns a field of /proc/meminfo, such as MemAvailable, in MiB.
func Memory(t *T, field string) int { return numberIn(t, "/proc/meminfo", field+":") / 1024 }

// Swapped returns how many pages were swapped in and out since the machine started.
func Swapped(t *T) (in, out int) {
	return numberIn(t, "/proc/vmstat", "pswpin"), numberIn(t, "/proc/vmstat", "pswpout")
}

// numberIn returns the number behind a word in a file.
func numberIn(t *T, path, word string) int {
	text, err := os.ReadFile(path)
	t.Must(err, word)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == word {
			n, err := strconv.Atoi(f[1])
			t.Must(err, word)
			return n
		}
	}
	t.Fatalf("%s has no %s", path, word)
	return 0
}

// SwapOn makes a device swap, until the end of the scenario or until the function that
// it returns is called.
func SwapOn(t *T, path string) (off func()) {
	out, err := exec.Command("/bin/busybox", "mkswap", path).CombinedOutput()
	if err != nil {
		t.Fatalf("mkswap %s: %v\n%s", path, err, out)
	}
	name, err := unix.BytePtrFromString(path)
	t.Must(err, "swapon")
	if _, _, e := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(name)), 0, 0); e != 0 {
		t.Fatalf("swapon %s: %v", path, e)
	}
	return SwapOff(t, path)
}

// SwapOff returns what ends the swapping on a device. The end of the scenario does so too.
func SwapOff(t *T, path string) (off func()) {
	name, err := unix.BytePtrFromString(path)
	t.Must(err, "swapoff")
	on := true
	off = func() {
		if !on {
			return
		}
		on = false
		if _, _, e := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(name)), 0, 0); e != 0 {
			t.Errorf("swapoff %s: %v", path, e)
		}
	}
	t.Cleanup(off)
	return off
}
