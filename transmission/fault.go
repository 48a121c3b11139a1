package transmission

import (
	"errors"
	"io/fs"
	"math/bits"
	"strings"

	"nbd.example/nbd/proto"
)

// report logs that the device has failed a request: the first time, and then
// each time that the count has doubled. A client's own mistakes are not logged.
func (c *conn) report(q *request, err error) {
	switch errnoOf(err, &q.Request) {
	case proto.EIO, proto.ENOSPC, proto.ENOMEM:
	default:
		return
	}
	if n := c.wstats.faults.Add(1); bits.OnesCount64(n) == 1 {
		c.log().Error("the device failed a request", "command", q.Command.String(), "offset", q.Offset, "length", q.Length,
			"error", err, "failures", n)
	}
}

// public is the text of err for a client, whom the names of the server's files
// are no business of.
func public(err error) string {
	text := err.Error()
	var p *fs.PathError
	if errors.As(err, &p) && p.Path != "" {
		text = strings.ReplaceAll(text, " "+p.Path, "")
	}
	return text
}
