// Package docs tries the command lines and the lines of configuration that stand on
// the pages of the folder docs, so that a page cannot promise what does not work.
// Where a peer's line stands beside ours, a client finds the same behind both.
//
// A page is a text in Markdown. In the tables, a line of ours is a span of code that
// begins with the name of one of our programs; one of a peer's begins with the peer's name.
// A block of code whose language is ini, below a paragraph that is a path in a span
// of code, is a file that the lines use.
package docs
