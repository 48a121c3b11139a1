package handshake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"nbd.example/nbd/proto"
)

// Errors that stand for replies. On the server, [Server.Open] and [Server.List]
// return or wrap them to choose the reply; on the client, a [*ReplyError] is the
// one that its reply stands for, so that errors.Is finds it.
var (
	ErrUnknown           = errors.New("no such export")                  // NBD_REP_ERR_UNKNOWN
	ErrPolicy            = errors.New("not permitted")                   // NBD_REP_ERR_POLICY
	ErrTLSRequired       = errors.New("TLS is required")                 // NBD_REP_ERR_TLS_REQD
	ErrShutdown          = errors.New("the server is shutting down")     // NBD_REP_ERR_SHUTDOWN
	ErrUnsupported       = errors.New("the option is not supported")     // NBD_REP_ERR_UNSUP
	ErrBlockSizeRequired = errors.New("block sizes must be asked for")   // NBD_REP_ERR_BLOCK_SIZE_REQD
	ErrExtendedRequired  = errors.New("extended headers are in the way") // NBD_REP_ERR_EXT_HEADER_REQD: missing, or already agreed on
)

// How a connection can end before the transmission phase.
var (
	// ErrAborted says that the client gave up with NBD_OPT_ABORT. It is no fault.
	ErrAborted = errors.New("the client aborted")
	// ErrHungUp says that the peer closed the connection between two messages.
	ErrHungUp = errors.New("the peer hung up")
	// ErrProtocol says that the peer broke a rule of the protocol. The connection
	// must be dropped. proto.md, "Termination of the session during option haggling".
	ErrProtocol = errors.New("protocol violation")
	// ErrState says that a method of [Client] was called when the protocol does
	// not allow its option. Nothing was sent, the connection is unharmed.
	ErrState = errors.New("not allowed now")
)

// ReplyError is an option that the server refused. Haggling can go on.
type ReplyError struct {
	Option proto.Option
	Reply  proto.OptionReply
	// Message is the server's text, at most [proto.MaxString] bytes. It is the
	// peer's: quote it.
	Message string
}

// Error quotes the server's message, and cuts a long one.
func (e *ReplyError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("server refused %v: %v", e.Option, e.Reply)
	}
	return fmt.Sprintf("server refused %v: %v: %.256q", e.Option, e.Reply, e.Message)
}

// Is makes errors.Is find the error that the reply stands for.
func (e *ReplyError) Is(target error) bool {
	return target != nil && replyErrors[e.Reply] == target
}

var replyErrors = map[proto.OptionReply]error{
	proto.RepErrUnknown:       ErrUnknown,
	proto.RepErrPolicy:        ErrPolicy,
	proto.RepErrTLSReqd:       ErrTLSRequired,
	proto.RepErrShutdown:      ErrShutdown,
	proto.RepErrUnsup:         ErrUnsupported,
	proto.RepErrBlockSizeReqd: ErrBlockSizeRequired,
	proto.RepErrExtHeaderReqd: ErrExtendedRequired,
}

// violation is an error about what the peer sent.
func violation(format string, args ...any) error {
	return fmt.Errorf("%w: peer sent %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// malformed is a violation that a codec found.
func malformed(what any, err error) error {
	return fmt.Errorf("%w: peer sent %v: %w", ErrProtocol, what, err)
}

// hungUp tells a peer that has gone from other errors of reading.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		isReset(err)
}

// explain says of an error that the context's end caused that it did. The
// connection's deadline may pass a moment before the context's timer fires.
func explain(ctx context.Context, err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w: %w", cause, err)
	}
	if _, ok := ctx.Deadline(); ok {
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return err
}

// clean makes s a string of the protocol: no NUL, valid UTF-8, not too long.
// proto.md, "Conventions".
func clean(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) <= proto.MaxString {
		return s
	}
	end := proto.MaxString
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}
