package fileid

import (
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// Name is made of the volume, the file's number, and when it was made. It is empty where
// the system does not tell.
func Name(f *os.File) string {
	var info windows.ByHandleFileInformation
	if windows.GetFileInformationByHandle(windows.Handle(f.Fd()), &info) != nil {
		return ""
	}
	return fmt.Sprint("file ", info.VolumeSerialNumber, " ", info.FileIndexHigh, " ", info.FileIndexLow, " born ", info.CreationTime.Nanoseconds())
}
