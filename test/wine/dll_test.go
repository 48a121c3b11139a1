package wine

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"testing"
)

// TestForwardingDLL reads the DLL as Go's own package does, and follows the
// addresses of its export directory.
func TestForwardingDLL(t *testing.T) {
	f, err := pe.NewFile(bytes.NewReader(forwardingDLL("a.dll", "Do", "b.Done")))
	must(t, err)
	h, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok || f.Machine != pe.IMAGE_FILE_MACHINE_AMD64 || f.Characteristics&pe.IMAGE_FILE_DLL == 0 || h.AddressOfEntryPoint != 0 {
		t.Fatalf("headers: %+v, %+v", f.FileHeader, f.OptionalHeader)
	}
	if len(f.Sections) != 1 {
		t.Fatalf("%d sections", len(f.Sections))
	}
	s := f.Sections[0]
	data, err := s.Data()
	must(t, err)
	where := h.DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_EXPORT]
	if where.VirtualAddress != s.VirtualAddress || where.Size != s.VirtualSize {
		t.Fatalf("the directory %+v is not the section %+v", where, s.SectionHeader)
	}
	at := func(rva uint32) []byte { return data[rva-s.VirtualAddress:] }
	number := func(rva uint32) uint32 { return binary.LittleEndian.Uint32(at(rva)) }
	text := func(rva uint32) string {
		text, _, _ := bytes.Cut(at(rva), []byte{0})
		return string(text)
	}
	var d exportDirectory
	must(t, binary.Read(bytes.NewReader(data), binary.LittleEndian, &d))
	if text(d.Name) != "a.dll" || d.NumberOfNames != 1 || d.NumberOfFunctions != 1 {
		t.Errorf("%s with %d names, %d functions", text(d.Name), d.NumberOfNames, d.NumberOfFunctions)
	}
	if name := text(number(d.AddressOfNames)); name != "Do" {
		t.Errorf("it exports %q", name)
	}
	target := number(d.AddressOfFunctions)
	if text(target) != "b.Done" || target < where.VirtualAddress || target >= where.VirtualAddress+where.Size {
		t.Errorf("to %q at %#x, in the directory %+v", text(target), target, where)
	}
}
