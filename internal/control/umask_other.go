//go:build !unix

package control

// ownerOnly does nothing: the folder says who may use a socket.
func ownerOnly() (restore func()) { return func() {} }
