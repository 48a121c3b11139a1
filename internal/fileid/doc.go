// Package fileid names files and folders by what the system knows them by, not by their
// paths: a file that was renamed is the same one, and one that has taken another's place is not.
// Back ends make their instance of it; see block.Caps.
package fileid
