// Package hangups sees the peers of sockets hang up, without reading from the sockets.
package hangups
