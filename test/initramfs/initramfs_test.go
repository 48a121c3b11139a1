package initramfs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
)

// scripts is the folder of what is tested.
const scripts = "../../initramfs"

// shells returns the shells of this machine, as commands that take -c.
func shells(t *testing.T) map[string][]string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no POSIX shell")
	}
	list := map[string][]string{"sh": {"sh"}}
	for name, cmd := range map[string][]string{
		"dash": {"dash"}, "busybox": {"busybox", "sh"}, "bash": {"bash", "--posix"}, "klibc": {"/usr/lib/klibc/bin/sh"},
	} {
		if _, err := exec.LookPath(cmd[0]); err == nil {
			list[name] = cmd
		}
	}
	return list
}

// eachShell runs a script in each shell, with the library read and -eu set, and returns
// what they print, which must be the same everywhere.
func eachShell(t *testing.T, script string, env []string, args ...string) string {
	t.Helper()
	var first, firstName string
	for name, shell := range shells(t) {
		text := fmt.Sprintf("set -eu\n. %s/nbdroot.sh\n%s\n", scripts, script)
		cmd := exec.Command(shell[0], append(append(shell[1:len(shell):len(shell)], "-c", text, name), args...)...)
		cmd.Env = append(os.Environ(), env...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil || errs.Len() > 0 {
			t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, &errs)
		}
		if firstName != "" && string(out) != first {
			t.Errorf("%q: %s prints %q, and %s %q", args, firstName, first, name, out)
		}
		first, firstName = string(out), name
	}
	return first
}

// parse is a script that prints what was understood of the command line in its
// arguments. DHCP's root path and server are in the environment.
const parse = `
nbd_words "$@"
if ! nbd_wanted; then echo nothing; exit; fi
if nbd_needs_dhcp; then echo dhcp; fi
if ! nbd_parse "$ROOTPATH" "$ROOTSERVER"; then echo "error: $nbd_error"; exit; fi
for v in uri host port name device root fstype flags opts; do
	eval "value=\$nbd_$v"
	[ -z "$value" ] || echo "$v=$value"
done
if nbd_ipv6; then echo ipv6; fi
[ -z "$nbd_extra" ] || echo "extra=$nbd_extra"
`

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		line, path, server string
		want               string // with the lines for /dev/nbd0 left away
	}{
		// Nothing for us.
		{"quiet ro", "", "", "nothing"},
		{"root=/dev/sda1 ip=dhcp", "", "", "nothing"},
		{"root=nfs:10.0.0.1:/srv", "", "", "nothing"},

		// As dracut.cmdline(7) has it.
		{"root=nbd:10.0.2.2:root", "", "", "host=10.0.2.2 name=root"},
		{"root=nbd:10.0.2.2:root:ext4:ro,noatime:conns=4,bs=4096", "", "", "host=10.0.2.2 name=root fstype=ext4 flags=ro,noatime opts=conns=4,bs=4096"},
		{"root=nbd:10.0.2.2:2000", "", "", "host=10.0.2.2 port=2000"},
		{"root=nbd:10.0.2.2:2000:ext4", "", "", "host=10.0.2.2 port=2000 fstype=ext4"},
		{"root=nbd:10.0.2.2:2000:ext4:rw:swap", "", "", "host=10.0.2.2 port=2000 fstype=ext4 flags=rw opts=swap"},
		{"root=nbd:[fe80::1]:root:xfs", "", "", "host=fe80::1 name=root fstype=xfs ipv6"},
		{"root=nbd:srv.example:root:::timeout=5,on-failure=wait:60", "", "", "host=srv.example name=root opts=timeout=5,on-failure=wait:60"},
		{"netroot=nbd:10.0.2.2:root root=LABEL=disk", "", "", "host=10.0.2.2 name=root root=LABEL=disk"},
		{"root=nbd:a:one netroot=nbd:b:two", "", "", "host=a name=one"},

		// With a port and an export.
		{"root=nbd:10.0.2.2:10809:root", "", "", "host=10.0.2.2 port=10809 name=root"},
		{"root=nbd:10.0.2.2:10809:root:btrfs:subvol=@:conns=2", "", "", "host=10.0.2.2 port=10809 name=root fstype=btrfs flags=subvol=@ opts=conns=2"},
		{"root=nbd:10.0.2.2:10809::ext4:ro", "", "", "host=10.0.2.2 port=10809 fstype=ext4 flags=ro"},
		{"root=nbd:10.0.2.2:10809::ro:conns=2", "", "", "host=10.0.2.2 port=10809 flags=ro opts=conns=2"},
		{"root=nbd:[2001:db8::2]:10809:root::noatime", "", "", "host=2001:db8::2 port=10809 name=root flags=noatime ipv6"},

		// URIs.
		{"root=nbd://10.0.2.2/root nbdopts=conns=2 nbdopts=bs=512", "", "", "uri=nbd://10.0.2.2/root extra=conns=2,bs=512"},
		{"root=nbds://srv.example:10810/a%20b?tls-hostname=x", "", "", "uri=nbds://srv.example:10810/a%20b?tls-hostname=x"},
		{"nbdroot=nbd://[fd00::1]/root root=UUID=1-2", "", "", "uri=nbd://[fd00::1]/root root=UUID=1-2 ipv6"},

		// As Debian's nbd-client has it.
		{"nbdroot=10.0.2.2,root,nbd1", "", "", "host=10.0.2.2 name=root device=/dev/nbd1 root=/dev/nbd1"},
		{"nbdroot=10.0.2.2,root,nbd1 root=/dev/nbd2", "", "", "host=10.0.2.2 name=root device=/dev/nbd2 root=/dev/nbd2"},
		{"nbdroot=10.0.2.2,root root=/dev/nbd3p2", "", "", "host=10.0.2.2 name=root device=/dev/nbd3 root=/dev/nbd3p2"},
		{"nbdroot=10.0.2.2,2000", "", "", "host=10.0.2.2 port=2000"},
		{"nbdroot=10.0.2.2:2000/root nbddev=/dev/nbd5", "", "", "host=10.0.2.2 port=2000 name=root device=/dev/nbd5 root=/dev/nbd5"},
		{"nbdroot=10.0.2.2:/srv/root", "", "", "host=10.0.2.2 name=/srv/root"},
		{"nbdroot=10.0.2.2/root", "", "", "host=10.0.2.2 name=root"},
		{"nbdroot=10.0.2.2:2000", "", "", "host=10.0.2.2 port=2000"},
		{"nbdroot=10.0.2.2", "", "", "host=10.0.2.2"},
		{"nbdroot=[fd00::1]:/srv", "", "", "host=fd00::1 name=/srv ipv6"},
		{"nbdroot=[fd00::1]:2000/root", "", "", "host=fd00::1 port=2000 name=root ipv6"},
		{"nbdroot=[fd00::1],root,nbd0", "", "", "host=fd00::1 name=root ipv6"},

		// By DHCP.
		{"nbdroot=dhcp", "10.0.2.2,root,nbd1", "10.9.9.9", "dhcp host=10.0.2.2 name=root device=/dev/nbd1 root=/dev/nbd1"},
		{"nbdroot=dhcp", "nbdroot=10.0.2.2,root", "", "dhcp host=10.0.2.2 name=root"},
		{"nbdroot=dhcp", "nbd:10.0.2.2:root:ext4", "", "dhcp host=10.0.2.2 name=root fstype=ext4"},
		{"nbdroot=dhcp", "nbd://10.0.2.2/root", "", "dhcp uri=nbd://10.0.2.2/root"},
		{"nbdroot=dhcp", "/srv/root", "10.0.2.2", "dhcp host=10.0.2.2 name=/srv/root"},
		{"nbdroot=dhcp", "", "10.0.2.2", "dhcp host=10.0.2.2"},
		{"nbdroot=dhcp,root,nbd1", "10.0.2.2", "", "dhcp host=10.0.2.2 name=root device=/dev/nbd1 root=/dev/nbd1"},
		{"nbdroot=dhcp,root", "", "10.0.2.2", "dhcp host=10.0.2.2 name=root"},
		{"nbdroot=/srv/root", "", "10.0.2.2", "dhcp host=10.0.2.2 name=/srv/root"},
		{"nbdroot=,root", "", "10.0.2.2", "dhcp host=10.0.2.2 name=root"},
		{"root=/dev/nbd0", "10.0.2.2:/root", "", "dhcp host=10.0.2.2 name=/root"},
		{"nbdroot=dhcp", "", "", `dhcp error: "dhcp" names no server, and neither does DHCP (root path "")`},
	} {
		env := []string{"ROOTPATH=" + tt.path, "ROOTSERVER=" + tt.server, "NBDROOT="}
		got := strings.Join(strings.Split(strings.TrimSpace(eachShell(t, parse, env, strings.Fields(tt.line)...)), "\n"), " ")
		got = strings.Replace(got, " device=/dev/nbd0", "", 1)
		got = strings.Replace(got, " root=/dev/nbd0", "", 1)
		if got != tt.want {
			t.Errorf("%s (root path %q, server %q):\n got %s\nwant %s", tt.line, tt.path, tt.server, got, tt.want)
		}
	}
}

// TestEnvironment has another script that knows better than the command line.
func TestEnvironment(t *testing.T) {
	env := []string{"ROOTPATH=", "ROOTSERVER=", "NBDROOT=10.1.1.1,other,nbd4"}
	got := eachShell(t, parse, env, "nbdroot=10.0.2.2,root,nbd1")
	if want := "host=10.1.1.1\nname=other\ndevice=/dev/nbd4\nroot=/dev/nbd4\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// attach is a script that prints, in a line each, the arguments that nbd-client gets.
const attach = `
chroot() { shift; printf '%s\n' "$@"; }
nbd_home=$TLSHOME
nbd_words "$@"
nbd_wanted
nbd_parse '' ''
nbd_attach
`

func TestAttach(t *testing.T) {
	const rest = " -persist -systemd-mark --ignore-term -swap"
	withTLS := t.TempDir()
	for _, name := range []string{"ca-cert.pem", "client-cert.pem", "client-key.pem"} {
		path := filepath.Join(withTLS, "etc/nbd/tls", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const tlsFiles = " -cacertfile=/etc/nbd/tls/ca-cert.pem -certfile=/etc/nbd/tls/client-cert.pem -keyfile=/etc/nbd/tls/client-key.pem"
	for _, tt := range []struct{ home, line, want string }{
		{"/nowhere", "root=nbd:10.0.2.2:root", "10.0.2.2 /dev/nbd0 -N root --retry=120"},
		{"/nowhere", "root=nbd:10.0.2.2:2000:root::ro:bs=4096,conns=4,-timeout=5,--on-failure=wait:60,persist,readonly",
			"10.0.2.2 2000 /dev/nbd0 -N root -block-size=4096 -connections=4 --timeout=5 --on-failure=wait:60 --readonly --retry=120"},
		{"/nowhere", "root=nbd:10.0.2.2:root nbdopts=retry=5,no_optgo", "10.0.2.2 /dev/nbd0 -N root --retry=5 -no-optgo"},
		{"/nowhere", "root=nbd://10.0.2.2/a%20b nbddev=nbd7", "nbd://10.0.2.2/a%20b /dev/nbd7 --retry=120"},
		{"/nowhere", "root=nbds://srv.example/root", "nbds://srv.example/root /dev/nbd0 --retry=120"},
		{withTLS, "root=nbds://srv.example/root", "nbds://srv.example/root /dev/nbd0 --retry=120" + tlsFiles},
		{withTLS, "root=nbd:10.0.2.2:root:::tls,tlshostname=srv", "10.0.2.2 /dev/nbd0 -N root -enable-tls --tlshostname=srv --retry=120" + tlsFiles},
		{withTLS, "root=nbd:10.0.2.2:root:::cacertfile=/a,certfile=/b,keyfile=/c", "10.0.2.2 /dev/nbd0 -N root -cacertfile=/a -certfile=/b -keyfile=/c --retry=120"},
		{withTLS, "root=nbd:10.0.2.2:root", "10.0.2.2 /dev/nbd0 -N root --retry=120"},
	} {
		got := eachShell(t, attach, []string{"TLSHOME=" + tt.home, "NBDROOT="}, strings.Fields(tt.line)...)
		want := "/sbin/nbd-client\n" + strings.Join(strings.Fields(tt.want+rest), "\n") + "\n"
		if strings.Join(sorted(got), " ") != strings.Join(sorted(want), " ") || operands(got) != operands(want) {
			t.Errorf("%s:\n got %q\nwant %q", tt.line, got, want)
		}
	}
}

// sorted returns the lines in order.
func sorted(text string) []string { return slices.Sorted(strings.Lines(text)) }

// operands returns the lines up to the first option: their order matters.
func operands(text string) string {
	before, _, _ := strings.Cut(text, "\n-")
	return before
}

// TestSyntax wants every script to be one for the shells that run it.
func TestSyntax(t *testing.T) {
	for _, path := range files(t) {
		shell, name := []string{"bash", "-n"}, "bash"
		if text, err := os.ReadFile(path); err != nil {
			t.Fatal(err)
		} else if !bytes.HasPrefix(text, []byte("#!/bin/bash")) {
			shell, name = []string{"sh", "-n"}, "sh"
		}
		if _, err := exec.LookPath(name); err != nil {
			t.Logf("no %s to look at %s", name, path)
			continue
		}
		if out, err := exec.Command(shell[0], append(shell[1:], path)...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", path, err, out)
		}
	}
}

// TestShellcheck wants shellcheck to find nothing.
func TestShellcheck(t *testing.T) {
	testgate.Requires(t, testgate.Program("shellcheck"))
	out, err := exec.Command("shellcheck", files(t)...).CombinedOutput()
	if err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
}

// files returns all scripts.
func files(t *testing.T) []string {
	t.Helper()
	list := []string{scripts + "/nbdroot.sh"}
	for _, pattern := range []string{"initramfs-tools/hooks/*", "initramfs-tools/scripts/*/*", "dracut/95nbd/*.sh", "mkinitcpio/*/*"} {
		found, err := filepath.Glob(filepath.Join(scripts, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no scripts in %s (%v)", pattern, err)
		}
		list = append(list, found...)
	}
	return list
}
