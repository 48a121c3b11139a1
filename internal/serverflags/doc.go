// Package serverflags reads the command line of nbd-server: the one that the
// reference has had since 1997, and what was added since.
//
// # Concepts
//
// Operands and options come in any order. The operands are
//
//	[address@]port file [size]
//
// and describe one export, the default one. In place of the first one there may be an
// address of another kind, unix:PATH or vsock:PORT. Without a file the exports are those
// of the configuration file alone. Options have one letter, may be joined as in
// -rc, and take their argument from the same word or the next; each has a long form
// as well, with two dashes, or one. Long options may be cut short as far as they stay
// unique. What follows -- are operands.
//
// One table, [Options], is all that the package knows of options. The usage text
// and the manual page are made from it.
package serverflags
