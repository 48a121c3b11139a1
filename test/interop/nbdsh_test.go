package interop

import (
	"fmt"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// prelude is what every script of nbdsh begins with. All exports are 4 MiB; disk
// and ro hold random bytes at first, mem holds zeroes.
const prelude = `
import os
size = 4 << 20
CONTEXT = nbd.CONTEXT_BASE_ALLOCATION
def connect(name, structured=True, contexts=[], strict=True):
    c = nbd.NBD()
    c.set_request_structured_replies(structured)
    for x in contexts:
        c.add_meta_context(x)
    if not strict:
        c.set_strict_mode(0)
    c.set_export_name(name)
    c.connect_unix(sock)
    assert c.get_structured_replies_negotiated() == structured
    assert c.get_size() == size, c.get_size()
    return c
def refused(want, call, *args, **kw):
    try:
        call(*args, **kw)
    except nbd.Error as e:
        assert e.errno == want, "want %s, is %s" % (want, e)
    else:
        assert False, "want %s, succeeded" % want
def extents(c, count, offset, flags=0):
    got = []
    def add(context, off, entries, err):
        got.append((context, off, entries))
    c.block_status(count, offset, add, flags)
    return got
`

// scripts are the cases. Those that make sense with both kinds of replies use
// "both", and run twice.
var scripts = []struct {
	name, script string
	both         bool
}{
	{"read and write", `
c = connect("disk", structured)
p = os.urandom(100_000)
before = c.pread(size, 0)
c.pwrite(p, 12_345)
after = c.pread(size, 0)
assert after[12_345:112_345] == p
assert after[:12_345] == before[:12_345] and after[112_345:] == before[112_345:]
c.flush()
c.shutdown()
d = connect("disk", structured)
assert d.pread(size, 0) == after
d.shutdown()
`, true},
	{"every length", `
c = connect("disk", structured)
for n in [1, 2, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20, size]:
    p = os.urandom(n)
    c.pwrite(p, size - n)
    assert c.pread(n, size - n) == p, n
`, true},
	{"force unit access", `
c = connect("disk", structured)
assert c.can_fua()
p = os.urandom(4096)
c.pwrite(p, 4096, nbd.CMD_FLAG_FUA)
c.zero(4096, 8192, nbd.CMD_FLAG_FUA)
c.trim(4096, 12288, nbd.CMD_FLAG_FUA)
assert c.pread(8192, 4096) == p + bytes(4096)
`, true},
	{"zero", `
c = connect("disk", structured)
before = c.pread(size, 0)
for off, n, flags in [(0, 4096, 0), (10_001, 5, 0), (100_000, 1 << 20, nbd.CMD_FLAG_NO_HOLE), (2 << 20, 2 << 20, 0)]:
    c.zero(n, off, flags)
    before = before[:off] + bytes(n) + before[off+n:]
    assert c.pread(size, 0) == before, (off, n)
`, true},
	{"trim and cache", `
c = connect("disk", structured)
assert c.can_trim() and c.can_cache()
before = c.pread(size, 0)
c.trim(1 << 20, 1 << 20)
after = c.pread(size, 0)
assert after[:1 << 20] == before[:1 << 20] and after[2 << 20:] == before[2 << 20:]
c.cache(size, 0)
assert c.pread(size, 0) == after
`, true},
	{"fast zero", `
c = connect("mem", strict=False)
c.pwrite(b"x" * 4096, 0)
if c.can_fast_zero():
    try:
        c.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert c.pread(4096, 0) == bytes(4096)
    except nbd.Error as e:
        assert e.errno in ("ENOTSUP", "EOPNOTSUPP"), e
        assert c.pread(4096, 0) == b"x" * 4096
else:
    refused("EINVAL", c.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO)
`, false},
	{"out of bounds", `
c = connect("disk", structured, strict=False)
before = c.pread(size, 0)
for off, n in [(size, 512), (size - 1, 2), (size - 512, 1024), (1 << 62, 1)]:
    refused("EINVAL", c.pread, n, off)
    refused("ENOSPC", c.pwrite, bytes(n), off)
    refused("ENOSPC", c.zero, n, off)
    refused("EINVAL", c.trim, n, off)
# Still in step, and nothing happened.
assert c.pread(size, 0) == before
`, true},
	{"read-only", `
c = connect("ro", structured, strict=False)
assert c.is_read_only()
before = c.pread(size, 0)
refused("EPERM", c.pwrite, b"x" * 512, 0)
refused("EPERM", c.zero, 512, 0)
refused("EPERM", c.trim, 512, 0)
assert c.pread(size, 0) == before
`, true},
	{"zero length", `
c = connect("disk", structured, strict=False)
for call in [lambda: c.pread(0, 0), lambda: c.pwrite(b"", 0), lambda: c.zero(0, 0), lambda: c.trim(0, 0), lambda: c.cache(0, 0)]:
    try:
        call()
    except nbd.Error as e:
        assert e.errno == "EINVAL", e
assert len(c.pread(512, 0)) == 512
`, true},
	{"unaligned", `
c = connect("disk", structured)
assert c.get_block_size(nbd.SIZE_MINIMUM) == 1
assert c.get_block_size(nbd.SIZE_MAXIMUM) >= 32 << 20
model = bytearray(c.pread(size, 0))
for i in range(200):
    off, n = 7 * i * i, 13 * i + 1
    p = os.urandom(n)
    c.pwrite(p, off)
    model[off:off+n] = p
assert c.pread(size, 0) == model
`, true},
	{"structured read", `
c = connect("mem")
c.pwrite(b"\x11" * 4096, 1 << 20)
p, seen = bytearray(b"\xff" * size), [0]
def chunk(buf, off, status, err):
    assert status in (nbd.READ_DATA, nbd.READ_HOLE), status
    assert len(buf) > 0
    seen[0] += len(buf)
    p[off:off+len(buf)] = buf if status == nbd.READ_DATA else bytes(len(buf))
c.pread_structured(size, 0, chunk)
want = bytearray(size)
want[1 << 20:(1 << 20) + 4096] = b"\x11" * 4096
assert p == want and seen[0] == size
`, false},
	{"do not fragment", `
c = connect("mem")
assert c.can_df()
c.pwrite(b"\x11" * 4096, 0)
chunks = [0]
def chunk(buf, off, status, err):
    chunks[0] += 1
c.pread_structured(65536, 0, chunk, nbd.CMD_FLAG_DF)
assert chunks[0] == 1, chunks
`, false},
	{"block status", `
c = connect("mem", contexts=[CONTEXT])
assert c.can_meta_context(CONTEXT)
c.pwrite(b"\x11" * 65536, 1 << 20)
(got,) = extents(c, size, 0)
assert got[0] == CONTEXT and got[1] == 0, got
e = got[2]
covered = dict()
off = 0
for n, state in zip(e[::2], e[1::2]):
    assert n > 0
    covered[off] = (n, state)
    off += n
assert off <= size
data = [o for o, (n, s) in covered.items() if s == 0]
assert data and data[0] <= 1 << 20, covered
hole = covered[0]
assert hole[1] == 3, covered
(one,) = extents(c, size, 0, nbd.CMD_FLAG_REQ_ONE)
assert len(one[2]) == 2, one
assert one[2][0] <= size
(small,) = extents(c, 512, 1 << 20, nbd.CMD_FLAG_REQ_ONE)
assert small[2] == [512, 0], small
`, false},
	{"block status that was not asked for", `
c = connect("mem", strict=False)
assert not c.can_meta_context(CONTEXT)
assert len(c.pread(512, 0)) == 512
`, false},
	{"many at once", `
c = connect("disk", structured)
bufs = []
before = c.pread(size, 0)
for i in range(500):
    b = nbd.Buffer(4096)
    off = (i * 7919 * 512) % (size - 4096)
    bufs.append((c.aio_pread(b, off), b, off))
left = {cookie for cookie, _, _ in bufs}
while left:
    c.poll(-1)
    left = {x for x in left if not c.aio_command_completed(x)}
for _, b, off in bufs:
    assert b.to_bytearray() == before[off:off+4096], off
`, true},
	{"two connections", `
assert connect("disk").can_multi_conn()
a, b = connect("disk", structured), connect("disk", structured)
p = os.urandom(50_000)
a.pwrite(p, 777)
assert b.pread(50_000, 777) == p
b.flush()
b.pwrite(bytes(10), 777)
assert a.pread(10, 777) == bytes(10)
`, true},
	{"copy on write", `
a, b = connect("cow", structured), connect("cow", structured)
assert not a.can_multi_conn()
before = a.pread(size, 0)
p = os.urandom(100_000)
a.pwrite(p, 5_001)
assert a.pread(100_000, 5_001) == p
assert b.pread(size, 0) == before
b.zero(size, 0)
assert b.pread(size, 0) == bytes(size)
assert a.pread(size, 0) == before[:5_001] + p + before[105_001:]
a.shutdown()
c = connect("cow", structured)
assert c.pread(size, 0) == before
`, true},
	{"depths of a diff", `
depth = "qemu:allocation-depth"
c = connect("cow", contexts=[depth])
assert extents(c, size, 0) == [(depth, 0, [size, 2])], extents(c, size, 0)
c.pwrite(os.urandom(1 << 16), 1 << 20)
c.zero(1 << 16, 3 << 20)
got = extents(c, size, 0)[0][2]
ends, at = [], 0
for n, state in zip(got[::2], got[1::2]):
    at += n
    ends.append((at, state))
assert ends == [(1 << 20, 2), ((1 << 20) + (1 << 16), 1), (3 << 20, 2), ((3 << 20) + (1 << 16), 1), (size, 2)], ends
d = connect("cow", contexts=[depth])
assert extents(d, size, 0) == [(depth, 0, [size, 2])], extents(d, size, 0)
`, false},
	{"option by option", `
h.set_opt_mode(True)
h.connect_unix(sock)
names = []
h.opt_list(lambda name, description: names.append(name))
assert sorted(names) == ["cow", "disk", "mem", "ro"], names
h.set_export_name("no such export")
refused("ENOENT", h.opt_info)
h.set_export_name("disk")
h.opt_info()
assert h.get_size() == size and not h.is_read_only()
h.set_export_name("ro")
h.opt_info()
assert h.is_read_only()
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
assert CONTEXT in contexts, contexts
h.set_export_name("disk")
h.opt_go()
assert len(h.pread(512, 0)) == 512
h.shutdown()
`, false},
	{"leaving while haggling", `
h.set_opt_mode(True)
h.connect_unix(sock)
h.opt_abort()
assert h.aio_is_closed() or h.aio_is_dead()
`, false},
	{"plain newstyle", `
h.set_handshake_flags(0)
h.set_export_name("disk")
h.connect_unix(sock)
assert h.get_size() == size
assert len(h.pread(4096, 0)) == 4096
h.shutdown()
`, false},
	{"old greeting flags", `
h.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)
h.set_export_name("disk")
h.connect_unix(sock)
assert h.get_size() == size
h.shutdown()
`, false},
}

func TestNbdsh(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdsh", "nbdinfo"))
	for _, c := range scripts {
		modes := []bool{true}
		if c.both {
			modes = append(modes, false)
		}
		for _, structured := range modes {
			name := c.name + map[bool]string{true: "", false: ", simple replies"}[structured]
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				runScript(t, c.script, structured)
			})
		}
	}
}

// runScript runs a script in nbdsh, against a server of its own. Images must not be
// harmed where they are not to be written.
func runScript(t *testing.T, script string, structured bool) {
	t.Helper()
	dir := harness.Dir(t)
	still := harness.Random(30, 4*mib)
	image := func(name string) string { return harness.Image(t, dir, name, still) }
	ro, cow := image("ro.img"), image("cow.img")
	s := harness.StartIn(t, dir, harness.Config{
		Exports: section("disk", image("disk.img")) +
			section("ro", ro, "readonly = true") +
			section("cow", cow, "copyonwrite = true") +
			section("mem", "memory:4M"),
	})
	boolean := map[bool]string{true: "True", false: "False"}[structured]
	text := fmt.Sprintf("sock = %q\nstructured = %s\n%s%s", s.Socket, boolean, prelude, script)
	out, errs, err := harness.Command(t, text, "nbdsh", "-c", "-")
	if err != nil {
		t.Fatalf("nbdsh: %v\n%s%s", err, out, errs)
	}
	s.Stop()
	harness.Same(t, ro, still)
	harness.Same(t, cow, still)
}
