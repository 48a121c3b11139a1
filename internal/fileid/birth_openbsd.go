package fileid

import "syscall"

// birth is when a file was made.
func birth(st *syscall.Stat_t) syscall.Timespec { return st.X__st_birthtim }
