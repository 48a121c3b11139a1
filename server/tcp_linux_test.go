package server

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTCPOptions(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tests := []struct {
		name string
		k    KeepAlive
		want map[int]int // by option of TCP; -1 stands for SO_KEEPALIVE
	}{
		{"default", KeepAlive{}, map[int]int{-1: 1, unix.TCP_NODELAY: 1, unix.TCP_KEEPIDLE: 30, unix.TCP_KEEPINTVL: 10,
			unix.TCP_KEEPCNT: 6, unix.TCP_USER_TIMEOUT: 300_000}},
		{"set", KeepAlive{time.Minute, 2 * time.Second, 3, 4 * time.Second}, map[int]int{-1: 1, unix.TCP_NODELAY: 1,
			unix.TCP_KEEPIDLE: 60, unix.TCP_KEEPINTVL: 2, unix.TCP_KEEPCNT: 3, unix.TCP_USER_TIMEOUT: 4000}},
		{"off", KeepAlive{Idle: -1, UserTimeout: -1}, map[int]int{-1: 0, unix.TCP_NODELAY: 1, unix.TCP_USER_TIMEOUT: 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			in, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if err := tt.k.apply(in); err != nil {
				t.Fatal(err)
			}
			raw, err := in.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) {
				for o, want := range tt.want {
					level := unix.IPPROTO_TCP
					if o == -1 {
						level, o = unix.SOL_SOCKET, unix.SO_KEEPALIVE
					}
					if got, err := unix.GetsockoptInt(int(fd), level, o); err != nil || got != want {
						t.Errorf("option %d of level %d is %d, %v, want %d", o, level, got, err, want)
					}
				}
			})
		})
	}
}
