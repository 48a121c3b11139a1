package file

// SysError is for tests.
var SysError = sysError
