// Package archtest holds the project to its own rules, as tests: which package
// may import which, how long a function and a file may be, that exported names are
// documented, that files are formatted and name no machine.
//
// It reads sources and needs no tools. The table of imports is in rules.go, next
// to doc.go at the root, which shows it to people.
package archtest
