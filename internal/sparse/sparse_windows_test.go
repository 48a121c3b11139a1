package sparse

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/windows"
)

// supported is FILE_SUPPORTS_SPARSE_FILES.
const supported = 0x40

// TestPrepare wants a file to be marked as one that may have holes.
func TestPrepare(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var flags uint32
	if err := windows.GetVolumeInformationByHandle(windows.Handle(f.Fd()), nil, 0, nil, nil, &flags, nil, 0); err != nil || flags&supported == 0 {
		t.Skipf("needs a file system with holes (flags %#x, %v)", flags, err)
	}
	if err := Prepare(f); err != nil {
		t.Fatal(err)
	}
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(windows.Handle(f.Fd()), &info); err != nil || info.FileAttributes&windows.FILE_ATTRIBUTE_SPARSE_FILE == 0 {
		t.Errorf("the attributes are %#x, %v", info.FileAttributes, err)
	}
}
