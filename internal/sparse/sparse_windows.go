package sparse

import (
	"os"

	"golang.org/x/sys/windows"
)

func prepare(f *os.File) error {
	var n uint32
	err := windows.DeviceIoControl(windows.Handle(f.Fd()), windows.FSCTL_SET_SPARSE, nil, 0, nil, 0, &n, nil)
	return os.NewSyscallError("FSCTL_SET_SPARSE", err)
}
