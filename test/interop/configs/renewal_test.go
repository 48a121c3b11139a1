package configs

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// TestRenewal: a server that has become nobody takes over keys that only root may read,
// and a reload that has nothing to do with them succeeds. Those of other names than at
// the start are refused, and change nothing.
func TestRenewal(t *testing.T) {
	testgate.Requires(t, testgate.Linux(), testgate.Root(), testgate.Program("nbdinfo"))
	t.Parallel()
	dir := harness.Dir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	old, fresh := harness.NewAuthority(t, dir, "old"), harness.NewAuthority(t, dir, "fresh")
	first, second := old.Issue(t, "server", "server", "localhost"), fresh.Issue(t, "server", "server", "localhost")
	oldClient, freshClient := old.Issue(t, "client", "client"), fresh.Issue(t, "client", "client")
	const one, two = "[e]\nexportname = memory:8k\n", "[more]\nexportname = memory:16k\n"
	generic := "user = nobody\nforce_tls = true\ncontrol = " + dir + "/ctl\n" + harness.ServerLines(first, filepath.Join(first, "ca-cert.pem"))
	s := harness.StartIn(t, dir, harness.Config{TCP: true, Generic: generic, Exports: one})
	if err := os.Chmod(s.File, 0o644); err != nil {
		t.Fatal(err)
	}
	uri := func(export, client string) string {
		return s.TCPURI("nbds", export) + "?tls-certificates=" + url.QueryEscape(client)
	}
	served := func(export, client, want string) {
		t.Helper()
		if got := strings.TrimSpace(harness.Run(t, "nbdinfo", "--size", uri(export, client))); got != want {
			t.Errorf("%s has %s bytes, want %s", export, got, want)
		}
	}
	served("e", oldClient, "8192")

	s.WriteConfig(t, generic, one+two)
	s.Signal(hangup)
	await(t, s.Process, "configuration taken over", 1)
	served("more", oldClient, "16384")

	// Renewed in place, by whoever renews keys, under the same names.
	renew := func(from string) {
		t.Helper()
		for _, name := range []string{"server-key.pem", "server-cert.pem", "ca-cert.pem"} {
			if err := os.Rename(filepath.Join(from, name), filepath.Join(first, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	renew(second)
	s.Signal(hangup)
	await(t, s.Process, "configuration taken over", 2)
	served("e", freshClient, "8192")
	harness.Refused(t, "nbdinfo", "--size", uri("e", oldClient))
	renew(old.Issue(t, "third", "server", "localhost"))
	harness.Run(t, harness.Tool(t, "nbd"), "ctl", "--socket", dir+"/ctl", "certs")
	served("e", oldClient, "8192")
	harness.Refused(t, "nbdinfo", "--size", uri("e", freshClient))

	elsewhere := fresh.Issue(t, "elsewhere", "server", "localhost")
	s.WriteConfig(t, "user = nobody\n"+harness.ServerLines(elsewhere, ""), one)
	s.Signal(hangup)
	await(t, s.Process, "elsewhere/server-key.pem: permission denied; the server is not root any more", 1)
	await(t, s.Process, "the earlier one stays in force", 1)
	served("more", oldClient, "16384")

	// One that is wrong changes nothing either.
	s.WriteConfig(t, generic, one)
	if err := os.Remove(filepath.Join(first, "server-cert.pem")); err != nil {
		t.Fatal(err)
	}
	s.Signal(hangup)
	await(t, s.Process, "server-cert.pem: no such file or directory", 1)
	await(t, s.Process, "the earlier one stays in force", 2)
	served("more", oldClient, "16384")
}
