# What the scripts beside this one share. To be sourced by bash.
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top" || exit 1
logs=$(mktemp -d) || exit 1
failed=()
begun=$SECONDS

# note TEXT: a line that stands out.
note() { printf '\n=== %s\n' "$*"; }

# step NAME COMMAND...: runs a command, shows its output only if it fails, and goes on.
step() {
	local name=$1 log=$logs/step.$BASHPID at=$SECONDS
	shift
	note "$name"
	if "$@" >"$log" 2>&1 </dev/null; then
		echo "ok ($((SECONDS - at)) s)"
	else
		tail -n 400 "$log"
		echo "FAILED: $name ($((SECONDS - at)) s)"
		failed+=("$name")
	fi
}

# shown NAME COMMAND...: runs a command whose output is worth seeing, and goes on.
shown() {
	local name=$1 at=$SECONDS
	shift
	note "$name"
	if "$@" 2>&1 </dev/null; then
		echo "ok ($((SECONDS - at)) s)"
	else
		echo "FAILED: $name ($((SECONDS - at)) s)"
		failed+=("$name")
	fi
}

# aside COMMAND...: runs a command that makes steps beside what follows, in what that leaves of
# the processors. What it says is kept for joined.
aside() {
	rm -f "$logs/aside.failed"
	patiently "$@" >"$logs/aside" 2>&1 </dev/null &
	beside=$!
}

# patiently COMMAND...: what runs aside, in a process of its own.
patiently() {
	renice -n 19 "$BASHPID" >/dev/null
	failed=()
	"$@"
	printf '%s\n' "${failed[@]}" >"$logs/aside.failed"
}

# joined: waits for the end of what runs aside, shows what it said, and counts its failures.
joined() {
	local name
	wait "$beside"
	cat "$logs/aside"
	[ -e "$logs/aside.failed" ] || echo "what ran aside has no end" >"$logs/aside.failed"
	while read -r name; do
		[ -z "$name" ] || failed+=("$name")
	done <"$logs/aside.failed"
}

# verdict: the end of a script, and its exit status.
verdict() {
	rm -rf "$logs"
	echo
	if [ ${#failed[@]} -gt 0 ]; then
		printf 'FAILED: %s\n' "${failed[@]}"
		echo "failed after $((SECONDS - begun)) s"
		exit 1
	fi
	echo "all steps passed, $((SECONDS - begun)) s"
}

# fuzz_targets: one line "folder name" for each fuzz target of the module.
fuzz_targets() {
	grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*\(' . |
		sed -E 's|^(.*)/[^/]*:func (Fuzz[A-Za-z0-9_]*)\(|\1 \2|' | sort -u
}

# fuzz TIME: runs every fuzz target for TIME, as many side by side as there are processors,
# each with one worker. It fails if one fails, or if there is none.
fuzz() {
	local targets=$logs/targets
	fuzz_targets >"$targets"
	echo "$(wc -l <"$targets") fuzz targets"
	[ -s "$targets" ] || return 1
	cut -d ' ' -f 1 "$targets" | sort -u | xargs -P "$(nproc)" -n 1 bash -c 'fuzz_build "$@"' build || return 1
	xargs -P "$(nproc)" -L 1 bash -c 'fuzz_one "$@"' one "$1" <"$targets"
}

# fuzz_name FOLDER: where the things of a folder lie.
fuzz_name() { echo "$logs/${1//\//_}"; }

# fuzz_build FOLDER: builds the tests of a folder, once for all targets there.
fuzz_build() { go test -c -fuzz . -o "$(fuzz_name "$1").test" "$1"; }

# fuzz_one TIME FOLDER NAME: runs one target. The end of the time is sometimes taken for a
# failure of the target; it then says nothing else, and gets a second try.
fuzz_one() {
	local log cache
	log=$(fuzz_name "$2/$3").log
	cache=$(go env GOCACHE)/fuzz/$(go list "$2") || return 1
	for _ in 1 2; do
		if (cd "$2" && "$(fuzz_name "$2").test" -test.run '^$' -test.fuzz "^$3\$" -test.parallel 1 \
			-test.fuzztime "$1" -test.fuzzminimizetime 5s -test.fuzzcachedir "$cache") >"$log" 2>&1; then
			echo "ok   $2 $3"
			return 0
		fi
		grep -q 'context deadline exceeded' "$log" || break
		grep -q 'Failing input' "$log" && break
	done
	tail -n 60 "$log"
	echo "FAIL $2 $3"
	return 1
}

# For xargs.
export logs
export -f fuzz_name fuzz_build fuzz_one
