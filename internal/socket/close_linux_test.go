package socket

import (
	"io"
	"net"
	"testing"
	"time"
)

// TestEndArrives: a peer sees the end as soon as a Conn is closed, also while the poller
// looks at it. See poller.forget.
func TestEndArrives(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				c := Own(nc)
				defer c.Close()
				b := make([]byte, 1)
				for range 3 {
					c.Read(b)
					c.Write(b)
				}
				c.Read(b)
			}()
		}
	}()
	for range 5000 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		b := make([]byte, 1)
		for range 3 {
			c.Write(b)
			c.Read(b)
		}
		c.Write(b)
		c.(*net.TCPConn).CloseWrite()
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("%d, %v", n, err)
		}
		c.Close()
	}
}
