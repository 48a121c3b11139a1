package wine

import (
	"bytes"
	"encoding/binary"
)

// A DLL is a file in the format PE32+. This one holds no code and a single
// section, which is its export directory: one name, forwarded to a function of
// another DLL. See "PE Format" in Microsoft's documentation.
const (
	fileAlign    = 0x200
	memoryAlign  = 0x1000
	headerSize   = fileAlign
	sectionRVA   = memoryAlign // where the section lies in memory, behind the headers
	stubSize     = 0x40        // the header for DOS, whose last field says where the next one is
	optionalSize = 112 + 16*8  // the optional header: its fields, and 16 directories
	dllBase      = 0x1_8e00_0000
)

// exportDirectory is IMAGE_EXPORT_DIRECTORY. Addresses are relative to where the
// DLL is loaded.
type exportDirectory struct {
	Characteristics, TimeDateStamp                           uint32
	MajorVersion, MinorVersion                               uint16
	Name, Base                                               uint32
	NumberOfFunctions, NumberOfNames                         uint32
	AddressOfFunctions, AddressOfNames, AddressOfNameOrdinal uint32
}

// fileHeader is IMAGE_FILE_HEADER with the signature in front of it.
type fileHeader struct {
	Signature                                            [4]byte
	Machine, NumberOfSections                            uint16
	TimeDateStamp, PointerToSymbolTable, NumberOfSymbols uint32
	SizeOfOptionalHeader, Characteristics                uint16
}

// optionalHeader is IMAGE_OPTIONAL_HEADER64.
type optionalHeader struct {
	Magic                                                            uint16
	MajorLinker, MinorLinker                                         uint8
	SizeOfCode, SizeOfInitializedData, SizeOfUninitializedData       uint32
	AddressOfEntryPoint, BaseOfCode                                  uint32
	ImageBase                                                        uint64
	SectionAlignment, FileAlignment                                  uint32
	MajorOS, MinorOS, MajorImage, MinorImage, MajorSystem, MinorSyst uint16
	Win32Version, SizeOfImage, SizeOfHeaders, CheckSum               uint32
	Subsystem, DllCharacteristics                                    uint16
	StackReserve, StackCommit, HeapReserve, HeapCommit               uint64
	LoaderFlags, NumberOfDirectories                                 uint32
	Directories                                                      [16]struct{ Address, Size uint32 }
}

// sectionHeader is IMAGE_SECTION_HEADER.
type sectionHeader struct {
	Name                                       [8]byte
	VirtualSize, VirtualAddress                uint32
	SizeOfRawData, PointerToRawData            uint32
	PointerToRelocations, PointerToLinenumbers uint32
	NumberOfRelocations, NumberOfLinenumbers   uint16
	Characteristics                            uint32
}

// forwardingDLL returns a DLL for x86-64 with the given file name, that exports
// name and forwards it to target, as in "advapi32.SystemFunction036".
func forwardingDLL(file, name, target string) []byte {
	exports := exportSection(file, name, target)
	raw := uint32(len(exports)+fileAlign-1) / fileAlign * fileAlign
	opt := optionalHeader{
		Magic: 0x20b, SizeOfInitializedData: raw, ImageBase: dllBase,
		SectionAlignment: memoryAlign, FileAlignment: fileAlign, MajorOS: 6, MajorSystem: 6,
		SizeOfImage: sectionRVA + memoryAlign, SizeOfHeaders: headerSize,
		Subsystem: 3, DllCharacteristics: 0x0140, // may be moved, data is not executed
		NumberOfDirectories: 16,
	}
	opt.Directories[0].Address, opt.Directories[0].Size = sectionRVA, uint32(len(exports))
	section := sectionHeader{
		VirtualSize: uint32(len(exports)), VirtualAddress: sectionRVA,
		SizeOfRawData: raw, PointerToRawData: headerSize,
		Characteristics: 0x4000_0040, // initialized data that can be read
	}
	copy(section.Name[:], ".edata")

	var b bytes.Buffer
	stub := make([]byte, stubSize)
	copy(stub, "MZ")
	binary.LittleEndian.PutUint32(stub[0x3c:], stubSize)
	b.Write(stub)
	put(&b, fileHeader{
		Signature: [4]byte{'P', 'E'}, Machine: 0x8664, NumberOfSections: 1,
		SizeOfOptionalHeader: optionalSize, Characteristics: 0x2022, // executable, large addresses, DLL
	})
	put(&b, opt)
	put(&b, section)
	b.Write(make([]byte, headerSize-b.Len()))
	b.Write(exports)
	b.Write(make([]byte, headerSize+int(raw)-b.Len()))
	return b.Bytes()
}

// exportSection returns the export directory and all that it points to. An
// address of a function that lies inside it is that of a text, the target.
func exportSection(file, name, target string) []byte {
	const directory = 40
	const functions, names, ordinals, texts = directory, directory + 4, directory + 8, directory + 12
	fileAt := uint32(sectionRVA + texts)
	nameAt := fileAt + uint32(len(file)) + 1
	targetAt := nameAt + uint32(len(name)) + 1
	var b bytes.Buffer
	put(&b, exportDirectory{
		Name: fileAt, Base: 1, NumberOfFunctions: 1, NumberOfNames: 1,
		AddressOfFunctions: sectionRVA + functions, AddressOfNames: sectionRVA + names,
		AddressOfNameOrdinal: sectionRVA + ordinals,
	})
	put(&b, [2]uint32{targetAt, nameAt})
	put(&b, [2]uint16{}) // the ordinal of the name, and padding
	for _, text := range []string{file, name, target} {
		b.WriteString(text + "\x00")
	}
	return b.Bytes()
}

// put appends a value of fixed size in little-endian order.
func put(b *bytes.Buffer, v any) {
	if err := binary.Write(b, binary.LittleEndian, v); err != nil {
		panic(err) // only for a type without a fixed size
	}
}
