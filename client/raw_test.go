package client_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"nbd.example/nbd/client"
	"nbd.example/nbd/proto"
)

// TestRaw sends what Conn never would, and sees what comes back.
func TestRaw(t *testing.T) {
	p := peers[0]
	uri, _ := p.serve(t, 1<<20)
	for _, cfg := range []client.Config{{DialContext: patiently}, {DialContext: patiently, NoStructured: true}} {
		r, err := client.DialRaw(t.Context(), uri, &cfg)
		if err != nil {
			t.Fatal(err)
		}
		write := &client.RawRequest{Request: proto.Request{Command: proto.CmdWrite, Cookie: 1, Length: 3}, Payload: []byte("abc")}
		read := &client.RawRequest{Request: proto.Request{Command: proto.CmdRead, Cookie: 2, Length: 3}}
		strange := &client.RawRequest{Request: proto.Request{Command: 999, Cookie: 3}}
		if err := r.Send(write); err != nil {
			t.Fatal(err)
		}
		if a, err := r.Receive(); err != nil || a.Cookie != 1 || a.Error != 0 {
			t.Fatalf("%+v, %v", a, err)
		}
		if err := r.Send(read); err != nil {
			t.Fatal(err)
		}
		a, err := r.Receive()
		if err != nil || a.Cookie != 2 {
			t.Fatalf("%+v, %v", a, err)
		}
		data := make([]byte, 3)
		if r.Structured {
			if a.Type != proto.ChunkOffsetData || len(a.Payload) != 11 {
				t.Fatalf("%+v", a)
			}
			data = a.Payload[8:]
			for a.Flags&proto.ReplyFlagDone == 0 {
				if a, err = r.Receive(); err != nil {
					t.Fatal(err)
				}
			}
		} else if err := r.ReadFull(data); err != nil {
			t.Fatal(err)
		}
		if string(data) != "abc" {
			t.Errorf("%q", data)
		}
		if err := r.Send(strange); err != nil {
			t.Fatal(err)
		}
		if a, err = r.Receive(); err != nil || a.Cookie != 3 || a.Magic == proto.MagicSimpleReply && a.Error != proto.EINVAL {
			t.Errorf("%+v, %v", a, err)
		}
		if a.Magic == proto.MagicStructuredReply {
			if e, err := proto.ParseErrorPayload(a.Payload, a.Type); err != nil || e.Error != proto.EINVAL {
				t.Errorf("%+v, %v", e, err)
			}
		}
		if err := r.Send(&client.RawRequest{Magic: 0x12345678, Request: proto.Request{Cookie: 4}}); err != nil {
			t.Fatal(err)
		}
		if a, err := r.Receive(); err == nil {
			t.Errorf("a request with a wrong magic number was answered: %+v", a)
		}
		r.Close()
	}
}

func TestRawExtended(t *testing.T) {
	f := &fake{greeting: newstyle, size: 1 << 20, flags: allFlags, transmission: serveDisk([]byte("abc")),
		answer: map[proto.Option][]fakeReply{proto.OptExtendedHeaders: {{reply: proto.RepAck}}}}
	r, err := client.DialRaw(t.Context(), f.serve(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	disc := &client.RawRequest{Request: proto.Request{Command: proto.CmdDisc}}
	if err := r.Send(&client.RawRequest{Request: proto.Request{Cookie: 7, Offset: 1, Length: 2}}, disc); err != nil {
		t.Fatal(err)
	}
	if a, err := r.Receive(); err != nil || a.Magic != proto.MagicExtendedReply || a.Cookie != 7 || a.Offset != 1 || string(a.Payload[8:]) != "bc" {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := r.Receive(); err != io.EOF {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestDialErrors has what goes wrong before there is a connection.
func TestDialErrors(t *testing.T) {
	for _, uri := range []string{"nbd:", "nbds://h/?tls-type=psk", "nbd+unix:///?socket=/does/not/exist"} {
		if _, err := client.Dial(t.Context(), uri, nil); err == nil {
			t.Errorf("%s: connected", uri)
		}
	}
	other := errors.New("nobody there")
	_, err := client.Dial(t.Context(), "nbd+vsock://2:7/", &client.Config{DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
		if network != "vsock" || address != "2:7" {
			t.Errorf("asked for %s, %s", network, address)
		}
		return nil, other
	}})
	if !errors.Is(err, other) {
		t.Error(err)
	}
	f := &fake{greeting: newstyle, size: 1 << 63, flags: allFlags, transmission: func(*fake, net.Conn) {}}
	if _, err := client.Dial(t.Context(), f.serve(t), nil); err == nil {
		t.Error("a size over 2^63-1 was accepted")
	}
}
