//go:build !unix

package main

// marked is true: there is nothing to mark.
func marked(string) bool { return true }

// mark is not called.
func (p *program) mark() int { return exitError }
