package clientflags

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// plain forgets how the flags were given.
func plain(f *Flags) Flags {
	c := *f
	c.settings = nil
	return c
}

// TestParse holds the command lines of the reference's manual pages and scripts, and
// those that are new.
func TestParse(t *testing.T) {
	for _, c := range []struct {
		line string // words, with tabs between them if there is one
		want Flags
	}{
		// The first documentation.
		{"server 1234 /dev/nb0", Flags{Host: "server", Port: "1234", Device: "/dev/nb0"}},
		// The examples of the manual.
		{"server.domain.com 2000 /dev/nbd0", Flags{Host: "server.domain.com", Port: "2000", Device: "/dev/nbd0"}},
		{"swapserver.domain.com 2001 /dev/nbd1 -swap", Flags{Host: "swapserver.domain.com", Port: "2001", Device: "/dev/nbd1", Swap: true}},
		{"-d /dev/nbd1", Flags{Action: Disconnect, Devices: []string{"/dev/nbd1"}}},
		{"-c /dev/nbd1", Flags{Action: Check, Devices: []string{"/dev/nbd1"}}},
		{"-check /dev/nbd1", Flags{Action: Check, Devices: []string{"/dev/nbd1"}}},
		{"-l host", Flags{Action: Exports, Host: "host"}},
		{"-l host 10810", Flags{Action: Exports, Host: "host", Port: "10810"}},
		{"-netlink -l host", Flags{Action: Exports, Host: "host"}},
		{"-l -u /run/sock", Flags{Action: Exports, Unix: true, Host: "/run/sock"}},
		{"nbd0", Flags{Tab: "nbd0"}},
		{"/dev/nbd0", Flags{Tab: "nbd0"}},
		{"-N disk nbd0", Flags{Tab: "nbd0", Name: "disk"}},
		{"-unix /run/sock /dev/nbd0 -connections 4", Flags{Unix: true, Host: "/run/sock", Device: "/dev/nbd0", Connections: 4}},
		{"/run/sock /dev/nbd0 -u", Flags{Unix: true, Host: "/run/sock", Device: "/dev/nbd0"}},
		{"-V", Flags{Action: Version}},
		{"--help", Flags{Action: Help}},
		// Every spelling of an argument.
		{"h /dev/nbd0 -name x", Flags{Host: "h", Device: "/dev/nbd0", Name: "x"}},
		{"h /dev/nbd0 -name=x", Flags{Host: "h", Device: "/dev/nbd0", Name: "x"}},
		{"h /dev/nbd0 --name x", Flags{Host: "h", Device: "/dev/nbd0", Name: "x"}},
		{"h /dev/nbd0 --name=x", Flags{Host: "h", Device: "/dev/nbd0", Name: "x"}},
		{"h /dev/nbd0 -N x", Flags{Host: "h", Device: "/dev/nbd0", Name: "x"}},
		{"h /dev/nbd0 -Nx", Flags{Host: "h", Device: "/dev/nbd0", Name: "x"}},
		{"-N x h /dev/nbd0", Flags{Host: "h", Device: "/dev/nbd0", Name: "x"}},
		{"h -N x /dev/nbd0", Flags{Host: "h", Device: "/dev/nbd0", Name: "x"}},
		{"-N\t\th\t/dev/nbd0", Flags{Host: "h", Device: "/dev/nbd0"}},
		{"h /dev/nbd0 -block-size 4096 -timeout 30 -size 8192", Flags{Host: "h", Device: "/dev/nbd0", BlockSize: 4096, Timeout: 30 * time.Second, Size: 8192}},
		{"h /dev/nbd0 -b1024 -t30 -B0x100000", Flags{Host: "h", Device: "/dev/nbd0", BlockSize: 1024, Timeout: 30 * time.Second, Size: 1 << 20}},
		{"h /dev/nbd0 -b=4096", Flags{Host: "h", Device: "/dev/nbd0", BlockSize: 4096}},
		{"h /dev/nbd0 bs=2048 timeout=5", Flags{Host: "h", Device: "/dev/nbd0", BlockSize: 2048, Timeout: 5 * time.Second, Warnings: []string{
			`"bs=2048" is written in a way that is out of use; write -block-size 2048`,
			`"timeout=5" is written in a way that is out of use; write -timeout 5`}}},
		{"h /dev/nbd0 -Rs", Flags{Host: "h", Device: "/dev/nbd0", ReadOnly: true, Swap: true}},
		{"h /dev/nbd0 -pnmRsgL", Flags{Host: "h", Device: "/dev/nbd0", Persist: true, Foreground: true, SystemdMark: true, ReadOnly: true, Swap: true, NoOptGo: true, NoNetlink: true}},
		{"h /dev/nbd0 -persist -nofork -systemd-mark -readonly -swap -no-optgo -nonetlink", Flags{Host: "h", Device: "/dev/nbd0", Persist: true, Foreground: true, SystemdMark: true, ReadOnly: true, Swap: true, NoOptGo: true, NoNetlink: true}},
		// Beginnings, as getopt takes them; -con is the reference's, not ours.
		{"h /dev/nbd0 -con 2 -tim 1 -sw -per -read", Flags{Host: "h", Device: "/dev/nbd0", Connections: 2, Timeout: time.Second, Swap: true, Persist: true, ReadOnly: true}},
		{"h /dev/nbd0 --ignore", Flags{Host: "h", Device: "/dev/nbd0", IgnoreTerm: true}},
		{"h /dev/nbd0 -P -B 1M", Flags{Host: "h", Device: "/dev/nbd0", PreInit: true, Size: 1 << 20}},
		{"h /dev/nbd0 -T 60", Flags{Host: "h", Device: "/dev/nbd0", OnFailure: "wait", Limit: time.Minute}},
		{"h /dev/nbd0 -t 0 --retry 5m --any-instance", Flags{Host: "h", Device: "/dev/nbd0", Timeout: Never, Retry: 5 * time.Minute, AnyInstance: true}},
		{"h /dev/nbd0 -dead-timeout 0", Flags{Host: "h", Device: "/dev/nbd0", OnFailure: "error"}},
		{"h /dev/nbd0 -i text", Flags{Host: "h", Device: "/dev/nbd0", Identifier: "text"}},
		{"h /dev/nbd0 -x -F c -K k -A a -H n -y NORMAL", Flags{Host: "h", Device: "/dev/nbd0", TLS: true, Cert: "c", Key: "k", CA: "a", TLSHostname: "n", Priority: "NORMAL"}},
		{"h /dev/nbd0 -K both", Flags{Host: "h", Device: "/dev/nbd0", Key: "both"}},
		{"h /dev/nbd0 -enable-tls -certfile c -keyfile k -cacertfile a -tlshostname n -priority NORMAL", Flags{Host: "h", Device: "/dev/nbd0", TLS: true, Cert: "c", Key: "k", CA: "a", TLSHostname: "n", Priority: "NORMAL"}},
		{"::1 10809 /dev/nbd0", Flags{Host: "::1", Port: "10809", Device: "/dev/nbd0"}},
		{"fe80::1%eth0 /dev/nbd0", Flags{Host: "fe80::1%eth0", Device: "/dev/nbd0"}},
		{"[::1]:1 /dev/nbd0", Flags{Host: "::1", Port: "1", Device: "/dev/nbd0"}},
		{"h:7 /dev/nbd0", Flags{Host: "h", Port: "7", Device: "/dev/nbd0"}},
		// New forms.
		{"h auto", Flags{Host: "h"}},
		{"h 7", Flags{Host: "h", Port: "7"}},
		{"h", Flags{Host: "h"}},
		{"nbd://h/x", Flags{URIs: []string{"nbd://h/x"}}},
		{"nbd://h/x nbds://g/x /dev/nbd7", Flags{URIs: []string{"nbd://h/x", "nbds://g/x"}, Device: "/dev/nbd7"}},
		{"nbd+unix:///x?socket=/s auto", Flags{URIs: []string{"nbd+unix:///x?socket=/s"}}},
		{"--serve /srv/disk.img", Flags{Serve: "/srv/disk.img"}},
		{"--serve=memory:1G|readonly nbd3", Flags{Serve: "memory:1G|readonly", Device: "nbd3"}},
		{"h --also g --also g:7 /dev/nbd0", Flags{Host: "h", Also: []string{"g", "g:7"}, Device: "/dev/nbd0"}},
		{"h --on-failure=wait:1m30s", Flags{Host: "h", OnFailure: "wait", Limit: 90 * time.Second}},
		{"h --on-failure wait", Flags{Host: "h", OnFailure: "wait"}},
		{"h --on-failure error", Flags{Host: "h", OnFailure: "error"}},
		{"h --connect-timeout 500ms --no-supervise", Flags{Host: "h", ConnectTimeout: 500 * time.Millisecond, NoSupervise: true}},
		// Commands, and servers that are called like them.
		{"list", Flags{Action: List}},
		{"list --json", Flags{Action: List, JSON: true}},
		{"status nbd0", Flags{Action: Status, Devices: []string{"nbd0"}}},
		{"detach --force nbd0 /dev/nbd1", Flags{Action: Detach, Force: true, Devices: []string{"nbd0", "/dev/nbd1"}}},
		{"resize nbd0", Flags{Action: Resize, Devices: []string{"nbd0"}}},
		{"resize nbd0 2G", Flags{Action: Resize, Devices: []string{"nbd0"}, NewSize: 2 << 30}},
		{"wait nbd0 gone --timeout 5", Flags{Action: Wait, Devices: []string{"nbd0"}, Until: "gone", Timeout: 5 * time.Second}},
		{"supervisor -n", Flags{Action: Supervisor, Foreground: true}},
		{"upgrade", Flags{Action: Upgrade, Devices: nil}},
		{"-- list /dev/nbd0", Flags{Host: "list", Device: "/dev/nbd0"}},
		{"list. /dev/nbd0", Flags{Host: "list.", Device: "/dev/nbd0"}},
		{"-N x status /dev/nbd0", Flags{Host: "status", Name: "x", Device: "/dev/nbd0"}},
		{"-- list", Flags{Host: "list"}},
		{"-n -- detach /dev/nbd0", Flags{Host: "detach", Device: "/dev/nbd0", Foreground: true}},
		{"-n detach 10809 /dev/nbd0", Flags{Host: "detach", Port: "10809", Device: "/dev/nbd0", Foreground: true}},
		{"--completion bash", Flags{Action: Completion, Shell: "bash"}},
		{"--systemd-generator /a /b /c", Flags{Action: Generator, Dirs: []string{"/a", "/b", "/c"}}},
		{"list --help", Flags{Action: Help}},
	} {
		words := strings.Fields(c.line)
		if strings.Contains(c.line, "\t") {
			words = strings.Split(c.line, "\t")
		}
		got, err := Parse(words)
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
		} else if g := plain(got); !reflect.DeepEqual(g, c.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", c.line, g, c.want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"", "nothing to do: name a server, a URI or a device of /etc/nbdtab; --help explains the command line"},
		{"-n", "nothing to do: "},
		{"h 10809 /dev/nbd0 x", `"x" is one operand too many`},
		{"ndb://h/x", `"ndb://h/x" is no URI of NBD, which begins with one of nbd:// nbds://`},
		{"h disk", `"disk" is neither a port number nor the name of an NBD device, which is like /dev/nbd0`},
		{"h 10809 disk", `"disk" is not the name of an NBD device`},
		{"h 70000 /dev/nbd0", `port "70000" is not a number from 1 to 65535`},
		{"h /dev/nbd0 -b 1000", `option -b: "1000" is not 512, 1024, 2048 or another power of two up to `},
		{"h /dev/nbd0 -block-size=x", `option -block-size: "x" is not 512`},
		{"h /dev/nbd0 -C 0", `option -C: "0" is not a number from 1 to 128`},
		{"h /dev/nbd0 -t x", `option -t: "x" is neither a number of seconds nor a duration such as 1m30s`},
		{"h /dev/nbd0 -t -1s", `option -t: "-1s" is negative`},
		{"h /dev/nbd0 -t 99999999999999999999", `option -t: "99999999999999999999" is neither`},
		{"h /dev/nbd0 -t 9999999999", `option -t: "9999999999" is too long`},
		{"h /dev/nbd0 -B 0", "option -B: a size of 0 bytes"},
		{"h /dev/nbd0 -B 9999999T", `option -B: "9999999T" is too large`},
		{"h /dev/nbd0 -B 1000 -b 512", "-size is not a multiple of -block-size"},
		{"h /dev/nbd0 -S", "-sdp: Linux has no Sockets Direct Protocol any more; leave it away, and TCP is used"},
		{"h /dev/nbd0 -P", "-preinit needs -size"},
		{"h /dev/nbd0 -P -B 1M -x", "-preinit excludes TLS"},
		{"h /dev/nbd0 -F c", "-certfile needs -keyfile; if both are in one file, -keyfile alone is enough"},
		{fmt.Sprint("h /dev/nbd0 -b ", 2*os.Getpagesize()), fmt.Sprint("up to ", os.Getpagesize(), ", the size of this machine's memory pages")},
		{"h /dev/nbd0 -no", `"-no": could be -`},
		{"h /dev/nbd0 -nam", `option -name needs its argument NAME`},
		{"h /dev/nbd0 --timeot=3", `"--timeot=3": unknown option; did you mean -timeout?`},
		{"h /dev/nbd0 -q", `unknown option "-q"; --help lists all`},
		{"h /dev/nbd0 -Rq", `unknown option "-q" in "-Rq"`},
		{"h /dev/nbd0 -R=1", `unknown option "-=" in "-R=1"`},
		{"h /dev/nbd0 -readonly=1", `option -readonly takes no argument, but got "1"`},
		{"h /dev/nbd0 --on-failure=stop", `option -on-failure: "stop" is not wait, wait:LIMIT or error`},
		{"h /dev/nbd0 --on-failure=wait:0", `a wait of no time is "error"`},
		{"-N x nbd://h/x", "the export is named twice"},
		{"-u nbd://h/x", "-unix is for a path"},
		{"-u /s 10809 /dev/nbd0", `"/dev/nbd0" is one operand too many`},
		{"--serve x h /dev/nbd0", `"/dev/nbd0" is one operand too many`},
		{"--serve x -x /dev/nbd0", "--serve needs no TLS"},
		{"--serve x --no-supervise", "--serve and --no-supervise exclude each other"},
		{"-p h --no-supervise", "-persist and --no-supervise exclude each other"},
		{"-l h /dev/nbd0", `"/dev/nbd0" is one operand too many: -l wants only a server`},
		{"-d /dev/nbd0 -c /dev/nbd0", "option -c: one command line does one thing, and it says already what"},
		{"-d disk", `option -d: "disk" is not the name of an NBD device`},
		{"-d /dev/nbd0 x", `"x" is one operand too many`},
		{"-n supervisor", `"supervisor" is a command only as the first word; a server of that name is nbd://supervisor/`},
		{"--state-dir=/x detach nbd0", `"detach" is a command only as the first word; a server of that name is nbd://detach/`},
		{"-n resize /dev/nbd0 2G", `"resize" is a command only as the first word`},
		{"-n wait nbd0 ready", `"wait" is a command only as the first word`},
		{"h --json", "option -json is for the command list, which must be the first word: nbd-client list -json"},
		{"list -R", "option -R is not for the command list"},
		{"list x", `"x" is one operand too many`},
		{"status", "which device? nbd-client status DEVICE"},
		{"status a b", `"b" is one operand too many`},
		{"detach", "which device? nbd-client detach DEVICE ..."},
		{"wait nbd0", "wait until what? nbd-client wait DEVICE ready|gone"},
		{"wait nbd0 there", "wait until what?"},
		{"resize nbd0 big", `"big" is not a size in bytes`},
		{"--completion tcsh", `option -completion: "tcsh" is not one of bash, zsh, fish`},
		{"--log-level loud h", `"loud" is not one of debug, info, warn, error`},
		{"-u /s --also h", "--also is for hosts"},
		{"h --also [::1", `"[::1" is not an IPv6 address in brackets`},
		{"h:0 /dev/nbd0", `port "0" is not a number from 1 to 65535`},
		{"a:b:c /dev/nbd0", `"a:b:c" is not an IPv6 address`},
		{"--", "nothing to do: "},
	} {
		_, err := Parse(strings.Fields(c.line))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.line, err, c.want)
		}
	}
}

// What is wrong with an option may be why there is nothing to do; that is not said then.
func TestOneError(t *testing.T) {
	for _, line := range []string{"--froce", "-N", "-b 3"} {
		if _, err := Parse(strings.Fields(line)); err == nil || strings.Contains(err.Error(), "nothing to do") {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// TestOver: what the command line says holds against nbdtab.
func TestOver(t *testing.T) {
	base := &Flags{Host: "h", Port: "7", Name: "disk", Device: "/dev/nbd0"}
	for _, s := range [][2]string{{"timeout", "30"}, {"swap", ""}, {"conns", "4"}, {"on-failure", "wait:5"}} {
		if err := base.Set(TabOption(s[0]), s[1]); err != nil {
			t.Fatal(err)
		}
	}
	line, err := Parse(strings.Fields("-t 60 -n -T 0 -N other nbd0"))
	if err != nil {
		t.Fatal(err)
	}
	got := plain(line.Over(base))
	want := Flags{Host: "h", Port: "7", Name: "other", Device: "/dev/nbd0", Tab: "nbd0", Timeout: time.Minute, Swap: true, Connections: 4, OnFailure: "error", Foreground: true, Warnings: []string{}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"server 1234 /dev/nb0", "-N\x00x\x00h\x00/dev/nbd0", "list --json", "-- list", "nbd://h/x --serve=x", "-Rst30 bs=512 [::1]:7", "wait nbd0 gone", "resize x 9223372036854775807T"} {
		f.Add(strings.ReplaceAll(s, " ", "\x00"))
	}
	f.Fuzz(func(t *testing.T, line string) {
		got, err := Parse(strings.Split(line, "\x00"))
		if err != nil {
			return
		}
		sources := 0
		for _, has := range []bool{got.Host != "", got.Serve != "", len(got.URIs) > 0, got.Tab != ""} {
			if has {
				sources++
			}
		}
		if got.Action == Attach && sources != 1 {
			t.Errorf("%q: %d things to attach: %+v", line, sources, got)
		}
		if got.Size < 0 || got.NewSize < 0 || got.Timeout < Never || got.Retry < 0 || got.Limit < 0 || got.Connections < 0 {
			t.Errorf("%q: accepted as %+v", line, got)
		}
		got.Over(&Flags{}) // sets everything once more
	})
}
