package server

import (
	"net"
	"testing"
	"time"
)

// TestHungUp looks at a peer that is there, has sent something, has closed its side, or all
// of the connection.
func TestHungUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, reset := range []bool{false, true} {
		peer, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		nc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if hungUp(nc) {
			t.Error("a client that is silent has hung up")
		}
		if _, err := peer.Write([]byte("more")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := nc.Read(got[:1]); err != nil { // what is behind it has come, too
			t.Fatal(err)
		}
		if hungUp(nc) {
			t.Error("a client that has sent something has hung up")
		}
		if _, err := nc.Read(got[1:]); err != nil || string(got) != "more" {
			t.Errorf("to look took something away: %q, %v", got, err)
		}
		if reset {
			if err := peer.(*net.TCPConn).SetLinger(0); err != nil {
				t.Fatal(err)
			}
		}
		if err := peer.Close(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(limit); !hungUp(nc); time.Sleep(time.Millisecond) { // nothing tells
			if time.Now().After(end) {
				t.Fatalf("the client has closed (reset: %v), and is still there", reset)
			}
		}
	}
}
