// Package nbdconf reads the configuration of nbd-server, in the format that the
// reference has: a GLib key file.
//
// # Concepts
//
// A configuration is one main file and, if its includedir names a folder, every
// *.conf file in there, in the order of their names. The first section of the main
// file is [generic]; it is about the server. Every other section is an export with
// the section's name, and has at least an exportname, which says what is served:
// a file, a block device, or a chain such as memory:1G.
//
// [ParseKeyFile] knows the format and nothing of its meaning. [Load] knows the
// meaning: it turns the files into a [Config] with the help of one table, [Keys],
// from which the manual page is made as well.
//
// Both report every [Problem] that they find, with its place. What the reference
// refuses is an [Error], and so is what it can do and this server cannot yet: to
// serve without a promised feature would be worse than not to serve. A key that
// nobody knows, or that stands in the wrong section, is [Unknown]: the reference
// passes over it in silence, so old files that have one must go on working, but
// somebody should hear of it.
package nbdconf
