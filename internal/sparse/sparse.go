// Package sparse prepares files for holes: for stretches that read as zeroes and take no room.
package sparse

import "os"

// Prepare lets a file have holes. On most systems every file can; on Windows a file must be told:
// otherwise all room up to its end is taken at once. It fails where the file system has no holes;
// then the file is as it was.
func Prepare(f *os.File) error { return prepare(f) }
