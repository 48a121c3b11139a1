package trlog

// appending is not used on Windows: a file that can only be appended to cannot be
// cut there, either.
const appending = 0
