// Package harness starts programs for the tests in its sibling folders: our own
// nbd-server, built once for a test process, and the peers. It waits until they
// serve, keeps what they say, shows it when the test fails, and ends them with the
// test.
//
// Everything here belongs to the test that asked for it, and is cleaned up with
// it. Failures end that test.
package harness
