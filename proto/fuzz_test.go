package proto

import (
	"reflect"
	"testing"
)

// fuzz feeds a codec with bytes. What it accepts it must write in a way that it
// reads as the same value.
func fuzz(f *testing.F, min int, names ...string) {
	for _, name := range names {
		for _, c := range codecs {
			if c.name != name {
				continue
			}
			f.Add(unhex(f, c.golden))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, c := range codecs {
			if c.name != names[0] {
				continue
			}
			if len(b) < min {
				return
			}
			v, err := c.parse(b)
			if err != nil {
				return
			}
			if r, ok := v.(InfoReply); ok && r.Type != InfoExport {
				return // the others have functions of their own to write them
			}
			if h, ok := v.(OptionHeader); ok && h.Length > 1<<20 {
				return // append makes that much data
			}
			again, err := c.parse(c.append(nil, v))
			if o, ok := v.(OptionReplyHeader); ok {
				o.Length = 0
				v = o
			}
			if err != nil || !reflect.DeepEqual(v, again) {
				t.Fatalf("%+v became %+v, %v", v, again, err)
			}
		}
	})
}

func FuzzParseGreeting(f *testing.F)           { fuzz(f, 0, "greeting") }
func FuzzParseClientFlags(f *testing.F)        { fuzz(f, ClientFlagsSize, "client flags") }
func FuzzParseOptionHeader(f *testing.F)       { fuzz(f, OptionHeaderSize, "option header") }
func FuzzParseOptionReplyHeader(f *testing.F)  { fuzz(f, OptionReplyHeaderSize, "option reply header") }
func FuzzParseExportReply(f *testing.F)        { fuzz(f, ExportNameReplySize, "export reply") }
func FuzzParseInfoRequest(f *testing.F)        { fuzz(f, 0, "info request") }
func FuzzParseMetaContextRequest(f *testing.F) { fuzz(f, 0, "meta context request") }
func FuzzParseServerReply(f *testing.F)        { fuzz(f, 0, "server reply") }
func FuzzParseMetaContext(f *testing.F)        { fuzz(f, 0, "meta context") }
func FuzzParseInfoReply(f *testing.F)          { fuzz(f, 0, "info export", "info name", "info block size") }
func FuzzParseRequest(f *testing.F)            { fuzz(f, RequestSize, "request") }
func FuzzParseExtendedRequest(f *testing.F)    { fuzz(f, ExtendedRequestSize, "extended request") }
func FuzzParseSimpleReply(f *testing.F)        { fuzz(f, SimpleReplySize, "simple reply") }
func FuzzParseChunk(f *testing.F)              { fuzz(f, StructuredReplySize, "structured chunk") }
func FuzzParseExtendedChunk(f *testing.F)      { fuzz(f, ExtendedReplySize, "extended chunk") }
func FuzzParseHole(f *testing.F)               { fuzz(f, 0, "hole") }
func FuzzParseErrorPayload(f *testing.F)       { fuzz(f, 0, "error", "error offset") }
func FuzzParseErrorOffsetPayload(f *testing.F) { fuzz(f, 0, "error offset", "error") }
func FuzzParseBlockStatus(f *testing.F)        { fuzz(f, 0, "block status", "block status ext") }
func FuzzParseBlockStatusExt(f *testing.F)     { fuzz(f, 0, "block status ext", "block status") }
func FuzzParseStatusFilter(f *testing.F)       { fuzz(f, 0, "status filter") }
