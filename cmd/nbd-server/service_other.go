//go:build !windows

package main

// asService is for Windows: elsewhere a service is a program like others.
func asService([]string) (status int, done bool) { return 0, false }
