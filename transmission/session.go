package transmission

import (
	"log/slog"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// Session is what the handshake has settled for one connection.
type Session struct {
	// Device is what is served. It stays open until Serve has returned; Serve
	// does not close it.
	Device *block.Device
	// Group holds the connections that share Device. Nil if there are no others.
	Group *Group
	// Flags as the client was told them: what they do not offer is refused.
	Flags proto.TransmissionFlags
	// Structured and Extended say which replies were agreed on. Extended wins.
	Structured, Extended bool
	// Contexts are the metadata contexts that the client chose.
	Contexts []proto.MetaContext
	// MinBlock is the minimum block size that the client was told, in bytes; 0
	// or 1 if any request is served. Others get EINVAL.
	MinBlock uint32
	// Log returns what takes the few things that a connection has to say. It is
	// called when there is something. Nil discards it.
	Log func() *slog.Logger
	// Tap is told of all requests. Nil costs nothing.
	Tap Tap
	// Live lets others see what the connection does. Nil if nobody looks.
	Live *Live
	// Early holds bytes that the client sent behind its last option.
	Early []byte
}

// Config bounds what a client can make a server do. The zero value is a good
// default. One Config serves many connections; its Pool is shared by them.
type Config struct {
	// MaxPayload is the longest read or write, in bytes. 0 means 64 MiB. It must
	// be what NBD_INFO_BLOCK_SIZE said, and at least 32 MiB. proto.md, "Size constraints".
	MaxPayload int
	// MaxRequests bounds the requests of a connection that are not answered yet.
	// 0 means 4096.
	MaxRequests int
	// MaxBuffered bounds the bytes of a connection that wait for a worker or for
	// the client to take them; where nothing does, one request is always let in. 0 means
	// 64 MiB.
	MaxBuffered int
	// Memory bounds the same of all connections that share it, see there. Nil is no bound.
	Memory *Memory
	// Workers bounds the requests of a connection that wait for the disk at the
	// same time: that many reads, and that many changes and flushes. 0 means 32.
	Workers int
	// StuckTimeout ends a connection whose client has taken nothing of what is
	// ready for it for so long. 0 means 15 minutes, below 0 never.
	StuckTimeout time.Duration
}

// Stats is what a connection has done.
type Stats struct {
	Requests     uint64
	Errors       uint64 // requests answered with an error
	BytesRead    uint64 // by the client, from the device
	BytesWritten uint64
}
