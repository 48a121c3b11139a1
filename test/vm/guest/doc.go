// Package guest is the part of the tests that runs in the virtual machine: the first
// process, the agent that runs scenarios, and what scenarios are made of. See package
// vm for the part outside.
package guest
