// Package scenarios holds what the tests try in virtual machines. Each scenario is a
// function that runs in the machine as root; the table names them and what they need.
// See package vm for how to add one.
package scenarios
