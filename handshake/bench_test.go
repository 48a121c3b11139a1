package handshake

import (
	"net"
	"path/filepath"
	"testing"

	"nbd.example/nbd/proto"
)

// BenchmarkNegotiate connects over a unix socket and negotiates with one INFO or
// GO, like most clients; both halves are counted.
func BenchmarkNegotiate(b *testing.B) {
	for _, c := range []struct {
		name string
		cfg  ClientConfig
	}{
		{"go", ClientConfig{Export: "disk", NoExtended: true, NoStructured: true}},
		{"all", ClientConfig{Export: "disk", Contexts: []string{"base:allocation"}}},
		{"tls", ClientConfig{Export: "disk", TLS: clientTLS()}},
	} {
		b.Run(c.name, func(b *testing.B) {
			l, done := benchServer(b)
			b.ReportAllocs()
			for b.Loop() {
				conn, err := net.Dial("unix", l.Addr().String())
				must(err)
				client, err := NewClient(b.Context(), conn)
				must(err)
				a, err := client.Negotiate(b.Context(), c.cfg)
				must(err)
				a.Conn.Close()
			}
			l.Close()
			<-done
		})
	}
}

// BenchmarkServer measures the server's half alone: the client writes what it
// has to say at once and only waits for the end.
func BenchmarkServer(b *testing.B) {
	l, done := benchServer(b)
	script := proto.AppendClientFlags(nil, bothFlags)
	script = proto.AppendOption(script, proto.OptStructuredReply, nil)
	script = proto.AppendOption(script, proto.OptGo, infoData("disk", proto.InfoBlockSize))
	want := proto.GreetingSize + 4*proto.OptionReplyHeaderSize + 12 + 14
	buf := make([]byte, want)
	b.ReportAllocs()
	for b.Loop() {
		conn, err := net.Dial("unix", l.Addr().String())
		must(err)
		_, err = conn.Write(script)
		must(err)
		for got := 0; got < want; {
			n, err := conn.Read(buf)
			must(err)
			got += n
		}
		conn.Close()
	}
	l.Close()
	<-done
}

func benchServer(b *testing.B) (net.Listener, chan struct{}) {
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	must(err)
	srv := newServer(newShelf())
	srv.Mode, srv.TLS = Selective, serverTLS()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := srv.Negotiate(b.Context(), conn); err != nil {
				b.Error(err)
			}
			conn.Close()
		}
	}()
	return l, done
}
