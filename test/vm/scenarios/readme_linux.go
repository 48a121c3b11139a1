package scenarios

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// ReadmeLines returns the commands that follow a text in README, without comments.
func ReadmeLines(t testing.TB, after string) (lines []string) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), after)
	_, rest, begins := strings.Cut(rest, "```sh\n")
	block, _, ends := strings.Cut(rest, "```")
	if !found || !begins || !ends {
		t.Fatalf("README has no commands behind %q", after)
	}
	for line := range strings.Lines(block) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

// readmeBlock returns such lines for the Args of a scenario.
func readmeBlock(t testing.TB, after string) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.Join(ReadmeLines(t, after), "\n")))
}

// readmeLines returns the lines of such a block, of which there must be three.
func readmeLines(t *guest.T, block string) []string {
	text, err := base64.StdEncoding.DecodeString(block)
	t.Must(err, "lines of README")
	lines := strings.Split(string(text), "\n")
	if len(lines) != 3 {
		t.Fatalf("README has %d lines, and promises three: %q", len(lines), lines)
	}
	return lines
}

// shell runs a line as a user would who has installed our programs.
func shell(t *guest.T, line string) {
	t.Logf("$ %s", line)
	harness.Run(t, "sh", "-c", "PATH="+filepath.Dir(guest.ClientPath)+":$PATH; "+line)
}

func readmeHost(t testing.TB) []string {
	return []string{readmeBlock(t, "\n## A disk from elsewhere, in three lines\n")}
}

// readme attaches, mounts and detaches by the three lines of README, as they are. Meanwhile
// the server is killed and comes back.
func readme(t *guest.T) {
	t.Cleanup(func() { detachAll(t) })
	lines := readmeLines(t, t.Args[0])
	nameServer(t)
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), 64*mib)
	guest.Mkfs(t, image)
	start := func() *harness.Process {
		p := harness.Spawn(t, nil, "/bin/nbd-server", "-n", "10809", image)
		p.AwaitListening("tcp", "127.0.0.1:10809")
		return p
	}
	s := start()
	shell(t, lines[0])
	shell(t, lines[1])
	tree := guest.WriteTree(t, "/mnt", 5, 40)
	s.Kill()
	s = start()
	more := guest.WriteTree(t, "/mnt/more", 50, 40)
	guest.DropCaches(t)
	tree.Verify(t, "/mnt")
	more.Verify(t, "/mnt/more")
	shell(t, lines[2])
	if _, err := os.Stat("/sys/block/nbd0/pid"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("attached after all: %v", err)
	}
	s.Stop()
	guest.Fsck(t, image)
}

// nameServer makes this machine known as server1.
func nameServer(t *guest.T) {
	const path = "/etc/hosts"
	before, err := os.ReadFile(path)
	t.Must(err, "names of hosts")
	t.Cleanup(func() { t.Must(os.WriteFile(path, before, 0o644), "names of hosts") })
	t.Must(os.WriteFile(path, append(before, "\n127.0.0.1 server1\n"...), 0o644), "names of hosts")
}
