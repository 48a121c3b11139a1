package initramfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
)

// mkinitcpioBuild does what mkinitcpio (42) does with a build hook, as far as the hook can
// tell: how its functions look for things and fail, where files go, that a hook is sourced
// and its result is nobody's business, and that the failures of what is called add_… are
// counted.
const mkinitcpioBuild = `
declare -A _runhooks _addedmodules
declare -i _builderrors=0
error() { local text=$1; shift; printf "==> ERROR: $text\n" "$@" >&2; return 1; }
add_dir() {
	[[ $1 == /?* ]] || return 1
	[[ -d $BUILDROOT$1 ]] || install -dm"${2:-755}" "$BUILDROOT$1"
}
add_file() {
	local from=$1 to=${2:-$1} mode=$3
	[[ -f $from ]] || { error "file not found: '%s'" "$from"; return 1; }
	if [[ $mode ]]; then
		install -Dm"$mode" "$from" "$BUILDROOT$to"
		return
	fi
	[[ -e $BUILDROOT${to%/*} ]] || add_dir "${to%/*}"
	cp --remove-destination --preserve=mode "$from" "$BUILDROOT$to"
}
add_binary() {
	local file=$1 to list line
	if [[ $file != /* ]] && ! file=$(type -P "$1"); then
		error "binary not found: '%s'" "$1"
		return 1
	fi
	to=${2:-$file}
	if [[ $3 ]]; then add_file "$file" "$to" "$3"; else add_file "$file" "$to"; fi || return 1
	# A return leaves to the trap what the command before it has left.
	if ! list=$(ldd "$file" 2>/dev/null); then
		return 0
	fi
	while read -r line; do
		[[ $line =~ (/[^ ]+)\ \(0x ]] && add_file "${BASH_REMATCH[1]}"
	done <<<"$list"
	return 0
}
add_module() {
	local name=${1%\?}
	(( _addedmodules["$name"] )) && return
	if [[ " $KERNEL " == *" $name "* ]]; then
		_addedmodules["$name"]=1
	elif [[ $1 != *\? ]]; then
		error "module not found: '%s'" "$name"
		return 1
	fi
}
add_runscript() {
	local script name=${BASH_SOURCE[1]##*/} word
	if ! script=$(PATH=$_d_hooks type -P "$name"); then
		error "runtime script for '%s' not found" "$name"
		return
	fi
	add_binary "$script" "/hooks/$name" 755
	for word in $(sed -nE 's/^[[:space:]]*(run_[[:alnum:]_]+)[[:space:]]*\(.*/\1/p' "$script"); do
		[[ $word != run_hook ]] || _runhooks[hooks]+=" $name"
	done
}
run_build_hook() {
	local script MODULES=() BINARIES=() FILES=() SCRIPT=''
	script=$(PATH=$_d_install type -P "$1") || { error "Hook '$1' cannot be found"; return 1; }
	unset -f build
	. "$script" || return 1
	declare -f build >/dev/null || return 1
	build
	return 0
}
`

// mkinitcpioRun runs the hook nbd as mkinitcpio does, and tells what came of it.
const mkinitcpioRun = mkinitcpioBuild + `
shopt -s extglob
umask 022
set -o functrace
trap '(( $? )) && [[ "$FUNCNAME" == add_* ]] && (( ++_builderrors ))' RETURN
install -dm755 "$BUILDROOT/usr/lib" "$BUILDROOT/usr/bin"
ln -s usr/lib "$BUILDROOT/lib"
run_build_hook nbd || (( ++_builderrors ))
trap - RETURN
echo "errors $_builderrors, modules ${!_addedmodules[*]}, hooks${_runhooks[hooks]}"
declare -f help >/dev/null && [[ $(help) == *root=nbd:* ]] && echo "help"
(cd "$BUILDROOT" && find . -type f -printf '%m %P\n' | sort -k 2)
`

// TestMkinitcpioBuild runs the half that packs.
func TestMkinitcpioBuild(t *testing.T) {
	testgate.Requires(t, testgate.Linux(), testgate.Program("bash"))
	const (
		static  = "#!/bin/sh\n" // anything that ldd takes for no program with libraries
		library = "644 lib/nbd/nbdroot.sh"
	)
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	dynamic, err := os.ReadFile(shell)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, client, init, kernel string
		want, not                  []string
	}{
		{name: "all is there", client: static, init: "#!/usr/bin/ash\n", kernel: "ext4 nbd",
			want: []string{"errors 0, modules nbd, hooks nbd\n", "help\n", "755 usr/bin/nbd-client\n", "644 usr/lib/nbd/nbdroot.sh\n", "755 hooks/nbd\n", "600 ", "client-key.pem\n"}, not: []string{"ERROR"}},
		{name: "no init yet", client: static, kernel: "nbd", want: []string{"errors 0,"}},
		{name: "no client", init: "#!/usr/bin/ash\n", kernel: "nbd", want: []string{"binary not found: 'nbd-client'", "errors 2,"}, not: []string{"errors 0"}},
		{name: "a client with libraries", client: string(dynamic), init: "#!/usr/bin/ash\n", kernel: "nbd", want: []string{"build it with CGO_ENABLED=0", "errors 1,"}},
		{name: "systemd", client: static, init: "\x7fELF", kernel: "nbd", want: []string{"have 'udev' in HOOKS", "errors 1,"}},
		{name: "no module", client: static, init: "#!/usr/bin/ash\n", kernel: "ext4", want: []string{"module not found: 'nbd'", "errors 1,"}},
	} {
		s := newSandbox(t, "")
		s.write("etc/nbd/tls/client-key.pem", "key")
		if err := os.Chmod(filepath.Join(s.dir, "etc/nbd/tls/client-key.pem"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.copy(scripts+"/nbdroot.sh", "usr/share/nbd/nbdroot.sh", "")
		s.copy(scripts+"/mkinitcpio/hooks/nbd", "hooks/nbd", "")
		s.copy(scripts+"/mkinitcpio/install/nbd", "install/nbd", s.dir)
		if tt.client != "" {
			s.write("bin/nbd-client", tt.client)
		}
		if tt.init != "" {
			s.write("root/init", tt.init)
		}
		cmd := exec.Command("bash", "-c", mkinitcpioRun)
		cmd.Env = []string{"PATH=" + s.dir + "/bin:/usr/bin:/bin", "BUILDROOT=" + s.dir + "/root", "KERNEL=" + tt.kernel,
			"_d_hooks=" + s.dir + "/hooks", "_d_install=" + s.dir + "/install"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		expect(t, tt.name, string(out), tt.want...)
		for _, not := range tt.not {
			if strings.Contains(string(out), not) {
				t.Errorf("%s: it says %q:\n%s", tt.name, not, out)
			}
		}
	}
}

// copy puts a file into the sandbox as a package would, not executable. The places of the
// system that it reads lie in the folder below, if that is not "".
func (s *sandbox) copy(from, to, below string) {
	s.t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(to, strings.NewReplacer("/usr/share/nbd/", below+"/usr/share/nbd/", "/etc/nbd/", below+"/etc/nbd/").Replace(string(text)))
	if err := os.Chmod(filepath.Join(s.dir, to), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// mkinitcpioInit does what mkinitcpio's init does around a hook: the words of the kernel's
// command line become variables and, since version 39, lines of a file; hooks are sourced one
// after the other and their results ignored; then the root is checked and mounted.
const mkinitcpioInit = `
msg() { :; }
err() { echo "ERROR: $*"; }
parse_cmdline() {
	read -r line
	for word in $line; do
		key=${word%%=*} value=y
		[ "$key" = "$word" ] || value=${word#*=}
		[ ! -e "$CACHE" ] || printf '%s=%s\n' "$key" "$value" >>"$CACHE"
		case $key in
		rw | ro) rwopt=$key ;;
		[!a-zA-Z_]* | [a-zA-Z_]*[!a-zA-Z0-9_]*) ;;
		*) eval "$key=\$value" ;;
		esac
	done
}
run_hookfunctions() {
	fn=$1
	shift
	for hook; do
		[ -x "$SANDBOX/hooks/$hook" ] || continue
		unset -f "$fn"
		. "$SANDBOX/hooks/$hook"
		command -v "$fn" >/dev/null || continue
		"$fn"
	done
}
fsck_root() {
	[ -e "$CACHE" ] || { echo "fsck $root"; return; }
	root_there=$(grep '^root=' "$CACHE" | tail -n 1)
	echo "fsck ${root_there#root=}"
}
mount_handler() { echo "mount -t ${rootfstype:-auto} -o ${rwopt:-ro}${rootflags:+,$rootflags} $root $1"; }
rwopt= rootfstype= rootflags= root=
parse_cmdline <"$SANDBOX/proc/cmdline"
run_hookfunctions run_hook $RUN
fsck_root
mount_handler /sysroot
run_hookfunctions run_latehook $RUN
`

// TestMkinitcpio runs the half that attaches.
func TestMkinitcpio(t *testing.T) {
	for name, shell := range shells(t) {
		for _, tt := range []struct{ line, client, want string }{
			{"rw nbdroot=dhcp rootflags=x", "10.0.2.2 /dev/nbd0 -N root", "fsck /dev/nbd0\nmount -t ext4 -o rw,ro /dev/nbd0 /sysroot\n"},
			{"root=nbd:10.0.2.2:root quiet", "10.0.2.2 /dev/nbd0 -N root", "fsck /dev/nbd0\nmount -t auto -o ro /dev/nbd0 /sysroot\n"},
			{"root=LABEL=a rootfstype=xfs nbdroot=10.0.2.2,root", "10.0.2.2 /dev/nbd0 -N root", "fsck LABEL=a\nmount -t xfs -o ro LABEL=a /sysroot\n"},
			{"root=/dev/sda1 rw", "", "fsck /dev/sda1\nmount -t auto -o rw /dev/sda1 /sysroot\n"},
			{"root=nbd:10.0.2.2:gone", "", "ERROR: nbd: cannot attach /dev/nbd0\nfsck nbd:10.0.2.2:gone\nmount -t auto -o ro nbd:10.0.2.2:gone /sysroot\n"},
		} {
			for _, version := range []string{"38", "39"} {
				s := newSandbox(t, tt.line)
				s.write("tmp/net-eth0.conf", "ROOTPATH='nbd:10.0.2.2:root:ext4:ro'\nIPV4DNS0='10.0.2.3'\n")
				if version == "39" {
					s.write("tmp/cmdline", "")
				}
				s.install(scripts+"/mkinitcpio/hooks/nbd", "hooks/nbd")
				out := s.run(shell, "RUN='net nbd'\nCACHE=$SANDBOX/tmp/cmdline"+mkinitcpioInit)
				if out != tt.want {
					t.Errorf("%s, version %s: %s:\n got %q\nwant %q", name, version, tt.line, out, tt.want)
				}
				log := s.read("log")
				if tt.client != "" {
					expect(t, name+": log", log, "client /sbin/nbd-client "+tt.client, "modprobe nbd")
				} else if strings.Contains(log, "attached") || strings.Contains(tt.line, "sda") && log != "" {
					t.Errorf("%s: %s: it does\n%s", name, tt.line, log)
				}
			}
		}
	}
}
