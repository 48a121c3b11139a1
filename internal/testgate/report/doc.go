// Report shows what "go test -json" prints, the way people read it, and judges it.
//
//	go test -json ./... | go run ./internal/testgate/report -must .ci/must-run.txt
//
// It prints one line for each package, everything that failing tests had to say, of
// those that pass the lines with "MEASURED: ", then each skipped test with its reason,
// and "N passed, N failed, N skipped" at the end. It fails if a test failed, if the
// input ends early, if no test ran, or if a line of the -must file is not fulfilled.
//
// The -must file has one line for each test, or family of tests, that must have
// run: the package's path below the module, and a pattern for the test's name as
// in [path.Match], or one that ends in / and the names of subtests that are put behind
// it. Empty lines and lines that begin with # are ignored.
//
//	test/interop   TestCopy/*
//	test/vm        TestVM/6.1/   ext4 vsock
//
// Each pattern wants at least one test that passed, and none that was skipped. With
// -only PREFIX, lines for packages outside that path are left aside. With -quiet only
// the numbers and the complaints of failed tests are printed, for events that were
// shown before.
package main
