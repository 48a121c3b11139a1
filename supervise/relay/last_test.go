package relay

import (
	"testing"

	"nbd.example/nbd/proto"
)

// TestLastRequest cuts streams at every place, and wants to know each time whether they
// end with NBD_CMD_DISC.
func TestLastRequest(t *testing.T) {
	read := proto.AppendRequest(nil, &proto.Request{Command: proto.CmdRead, Cookie: 7, Length: 4096})
	disc := proto.AppendRequest(nil, &proto.Request{Command: proto.CmdDisc})
	stream := append(append(append(read, read...), disc...), read...)
	for step := 1; step <= len(stream); step++ {
		var l lastRequest
		for at := 0; at < len(stream); at += step {
			end := min(at+step, len(stream))
			want := end == 3*proto.RequestSize
			if got := l.add(stream[at:end]); got != want {
				t.Errorf("pieces of %d bytes, up to %d: %t, want %t", step, end, got, want)
			}
		}
	}
}
