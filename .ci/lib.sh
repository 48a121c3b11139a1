# What the scripts beside this one share. To be sourced by bash.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top" || exit 1
logs=$(mktemp -d) || exit 1
failed=()
begun=$SECONDS

# note TEXT: a line that stands out.
note() { printf '\n=== %s\n' "$*"; }

# step NAME COMMAND...: runs a command, shows its output only if it fails, and goes on.
step() {
	local name=$1 log at=$SECONDS
	shift
	log=$logs/step
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

# fuzz TIME: runs every fuzz target for TIME. It fails if one fails, or if there is none.
fuzz() {
	local dir name count=0 bad=0 out=$logs/fuzz
	while read -r dir name; do
		count=$((count + 1))
		if fuzz_one "$1" "$dir" "$name" "$out"; then
			echo "ok   $dir $name"
		else
			tail -n 60 "$out"
			echo "FAIL $dir $name"
			bad=$((bad + 1))
		fi
	done < <(fuzz_targets)
	echo "$count fuzz targets, $bad failed"
	[ "$count" -gt 0 ] && [ "$bad" -eq 0 ]
}

# fuzz_one TIME FOLDER NAME LOG: runs one target. The go command sometimes takes the end of
# the time for a failure of the target; it then says nothing else, and gets a second try.
fuzz_one() {
	local try
	for try in 1 2; do
		go test -run '^$' -fuzz "^$3\$" -fuzztime "$1" -fuzzminimizetime 5s "$2" >"$4" 2>&1 && return 0
		grep -q 'context deadline exceeded' "$4" || return 1
		grep -q 'Failing input' "$4" && return 1
	done
	return 1
}
