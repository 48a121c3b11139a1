// Package trlog writes, reads and replays transaction logs: files that record
// what the clients of an export have asked for, in the format of nbd-server's
// transactionlog.
//
// # The format
//
// A log is a sequence of records, numbers in network byte order, as they are on
// the wire: compact requests (28 bytes) and simple replies (16 bytes). A setting
// is a request whose magic number ends in 14 instead of 13, and says with
// SET_DATALOG whether each NBD_CMD_WRITE from here on is followed by what was written.
// Connections are not told apart. Logs of newer versions of the reference also
// have headers of structured replies (20 bytes), which are read here, and never written:
// whatever was agreed with the client, each request has one simple reply in
// our logs, which its tools of all ages understand.
//
// Three things do not fit into the format as it is:
//
//   - a request of 4 GiB or more becomes several, with the same cookie, and one
//     reply;
//   - a write that was refused, whose payload is dropped, stands between two
//     settings as a write without data;
//   - where records are missing, because the disk of the log was full or too slow,
//     stands a setting of our own, LOST, which the reference's tools pass over.
//
// # Order
//
// The order of the records is one in which changes can be made again, one after
// the other, to arrive at the same contents: changes that overlap stand in the
// order in which they were made, on whichever connection, and a request that was
// made because of an answer stands behind the answer.
//
// # Writing
//
// A [Log] gathers records in memory and writes them in large pieces, a moment
// later. What it holds is bounded. A disk that is slower than the clients slows them
// down; one that does not move at all does so for a moment, then records are
// lost, counted, and marked as missing. A server does not end because of its log.
//
// A file that exists is continued. If it ends in the middle of a record, after a
// crash, that record is cut off; if it is no transaction log at all, it is left
// alone. To know that, a log is read from its beginning. A long one has a mark at its end
// if it was closed in order, and need not be read; if it was not, it is set aside as it is,
// and a new one begins, so that no server waits for a hundred gigabytes after a crash.
package trlog
