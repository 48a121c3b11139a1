package handshake

import (
	"crypto/tls"
	"fmt"
	"strings"

	"nbd.example/nbd/proto"
)

// Event is one message of a handshake, as a Trace function sees it.
type Event struct {
	FromServer bool
	Message    Message
	// Raw holds the message's bytes, above TLS if that is in use. It is good
	// during the call only. Of an option whose data was too long to be looked at
	// it holds the header.
	Raw []byte
}

// String gives one line: "C: " or "S: " and the message.
func (e Event) String() string {
	if e.FromServer {
		return "S: " + e.Message.String()
	}
	return "C: " + e.Message.String()
}

// Message is one of [GreetingMessage], [FlagsMessage], [OptionMessage],
// [ReplyMessage], [ExportNameMessage], [OldstyleMessage] and [TLSMessage]. Their String methods
// quote what the peer chose, and cut what is long.
type Message interface {
	fmt.Stringer
	message()
}

// GreetingMessage is the server's first message.
type GreetingMessage struct{ Flags proto.HandshakeFlags }

// FlagsMessage is the client's answer to the greeting.
type FlagsMessage struct{ Flags proto.ClientFlags }

// OptionMessage is an option that the client sent.
type OptionMessage struct {
	Option proto.Option
	Length uint32 // bytes of data, as announced
	// Data is a string for EXPORT_NAME, a [proto.InfoRequest] for INFO and GO, a
	// [proto.MetaContextRequest] for LIST_META_CONTEXT and SET_META_CONTEXT, and
	// nil for others and for what cannot be read.
	Data any
	Err  error // why the data of one of these cannot be read
}

// ReplyMessage is a reply to an option.
type ReplyMessage struct {
	Option proto.Option
	Reply  proto.OptionReply
	// Data is a [proto.ServerReply], a [proto.InfoReply], a [proto.MetaContext],
	// a string for the message of an error, or nil.
	Data any
	Err  error // why the data of one of these cannot be read
}

// ExportNameMessage is the answer to EXPORT_NAME.
type ExportNameMessage struct {
	proto.ExportReply
	Zeroes bool // 124 zero bytes follow
}

// TLSMessage stands for the TLS handshake, once it has succeeded.
type TLSMessage struct{ State tls.ConnectionState }

func (GreetingMessage) message()   {}
func (FlagsMessage) message()      {}
func (OptionMessage) message()     {}
func (ReplyMessage) message()      {}
func (ExportNameMessage) message() {}
func (TLSMessage) message()        {}

func (m GreetingMessage) String() string { return fmt.Sprintf("greeting, flags %v", m.Flags) }

func (m FlagsMessage) String() string { return fmt.Sprintf("client flags %v", m.Flags) }

func (m OptionMessage) String() string {
	s := m.Option.String()
	switch d := m.Data.(type) {
	case string:
		s += fmt.Sprintf(" %.256q", d)
	case proto.InfoRequest:
		s += fmt.Sprintf(" %.256q asking %s", d.Export, list(d.Requests, "%v"))
	case proto.MetaContextRequest:
		s += fmt.Sprintf(" %.256q queries %s", d.Export, list(d.Queries, "%.256q"))
	default:
		if m.Length > 0 {
			s += fmt.Sprintf(" with %d bytes", m.Length)
		}
	}
	if m.Err != nil {
		s += fmt.Sprintf(" (%v)", m.Err)
	}
	return s
}

func (m ReplyMessage) String() string {
	s := fmt.Sprintf("%v to %v", m.Reply, m.Option)
	switch d := m.Data.(type) {
	case string:
		s += fmt.Sprintf(": %.256q", d)
	case proto.ServerReply:
		s += fmt.Sprintf(": %.256q description %.256q", d.Export, d.Description)
	case proto.MetaContext:
		s += fmt.Sprintf(": %.256q id %d", d.Name, d.ID)
	case proto.InfoReply:
		s += ": " + infoString(d)
	}
	if m.Err != nil {
		s += fmt.Sprintf(" (%v)", m.Err)
	}
	return s
}

func (m ExportNameMessage) String() string {
	s := fmt.Sprintf("export of %d bytes, flags %v", m.Size, m.Flags)
	if m.Zeroes {
		s += ", 124 zeroes"
	}
	return s
}

func (m TLSMessage) String() string {
	return fmt.Sprintf("%s handshake done", tls.VersionName(m.State.Version))
}

func infoString(i proto.InfoReply) string {
	switch i.Type {
	case proto.InfoExport:
		return fmt.Sprintf("%v %d bytes, flags %v", i.Type, i.Export.Size, i.Export.Flags)
	case proto.InfoName, proto.InfoDescription:
		return fmt.Sprintf("%v %.256q", i.Type, i.Text)
	case proto.InfoBlockSize:
		return fmt.Sprintf("%v minimum %d, preferred %d, maximum payload %d",
			i.Type, i.BlockSize.Minimum, i.BlockSize.Preferred, i.BlockSize.MaxPayload)
	}
	return i.Type.String()
}

// list prints at most the first eight elements.
func list[T any](all []T, format string) string {
	var b strings.Builder
	for i, v := range all {
		if i == 8 {
			fmt.Fprintf(&b, " and %d more", len(all)-i)
			break
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, format, v)
	}
	return "[" + b.String() + "]"
}

// optionMessage reads an option's data for a trace.
func optionMessage(h proto.OptionHeader, data []byte) OptionMessage {
	m := OptionMessage{Option: h.Option, Length: h.Length}
	if int64(len(data)) < int64(h.Length) {
		return m
	}
	switch h.Option {
	case proto.OptExportName:
		m.Data, m.Err = decoded(string(data), proto.CheckString(data))
	case proto.OptInfo, proto.OptGo:
		m.Data, m.Err = decoded(proto.ParseInfoRequest(data))
	case proto.OptListMetaContext, proto.OptSetMetaContext:
		m.Data, m.Err = decoded(proto.ParseMetaContextRequest(data))
	}
	return m
}

// replyMessage reads a reply's data for a trace.
func replyMessage(o proto.Option, r proto.OptionReply, data []byte) ReplyMessage {
	m := ReplyMessage{Option: o, Reply: r}
	switch {
	case r.IsError() && len(data) > 0:
		m.Data, m.Err = decoded(string(data), proto.CheckString(data))
	case r == proto.RepServer:
		m.Data, m.Err = decoded(proto.ParseServerReply(data))
	case r == proto.RepInfo:
		m.Data, m.Err = decoded(proto.ParseInfoReply(data))
	case r == proto.RepMetaContext:
		m.Data, m.Err = decoded(proto.ParseMetaContext(data))
	}
	return m
}

func decoded[T any](v T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}
