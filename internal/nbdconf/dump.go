package nbdconf

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// WriteKeyFile writes c as one key file without includes: what is in effect, with
// every key that has a value other than its default.
func (c *Config) WriteKeyFile(w io.Writer) error {
	var b strings.Builder
	b.WriteString("[generic]\n")
	writeKeys(&b, genericKeys, &c.Generic, nil)
	for _, x := range c.Exports {
		b.WriteByte('\n')
		x.write(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteSection writes the section of one export.
func (x *Export) WriteSection(w io.Writer) error {
	var b strings.Builder
	x.write(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (x *Export) write(b *strings.Builder) {
	fmt.Fprintf(b, "[%s]\n", x.Name)
	writeKeys(b, exportKeys, nil, x)
}

// writeKeys writes the keys that are set. The one that is required comes first,
// and includedir is left out: its files are a part of the dump.
func writeKeys(b *strings.Builder, keys []Key, g *Generic, x *Export) {
	if x != nil {
		fmt.Fprintf(b, "\texportname = %s\n", escape(x.ExportName))
	}
	for _, k := range keys {
		if k.field == nil || k.Name == "exportname" || k.Name == "includedir" {
			continue
		}
		if v, ok := text(k.field(g, x)); ok {
			fmt.Fprintf(b, "\t%s = %s\n", k.Name, v)
		}
	}
}

// text returns a value as a key file has it, and whether it is worth writing.
func text(field any) (string, bool) {
	switch f := field.(type) {
	case *string:
		return escape(*f), *f != ""
	case *[]string:
		return escape(strings.Join(*f, ", ")), len(*f) > 0
	case *bool:
		return strconv.FormatBool(*f), *f
	case *Tri:
		return strconv.FormatBool(*f == True), *f != Unset
	case *int:
		return strconv.Itoa(*f), *f != 0
	case *int64:
		return strconv.FormatInt(*f, 10), *f != 0
	}
	return "", false
}

// WriteJSON writes c as one JSON object: {"files": […], "generic": {key: value,
// …}, "exports": [{"name": …, "at": …, key: value, …}, …]}. Keys are those of
// the file, values have their types; what was left out is not there.
func (c *Config) WriteJSON(w io.Writer) error {
	exports := make([]map[string]any, 0, len(c.Exports))
	for _, x := range c.Exports {
		m := values(exportKeys, nil, x)
		m["name"] = x.Name
		if x.Pos.File != "" {
			m["at"] = x.Pos.String()
		}
		exports = append(exports, m)
	}
	out, err := json.MarshalIndent(map[string]any{
		"files": append([]string{}, c.Files...), "generic": values(genericKeys, &c.Generic, nil), "exports": exports,
	}, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(out, '\n'))
	return err
}

func values(keys []Key, g *Generic, x *Export) map[string]any {
	m := map[string]any{}
	for _, k := range keys {
		if k.field == nil {
			continue
		}
		field := k.field(g, x)
		if _, ok := text(field); !ok {
			continue
		}
		switch f := field.(type) {
		case *string:
			m[k.Name] = *f
		case *[]string:
			m[k.Name] = *f
		case *bool:
			m[k.Name] = *f
		case *Tri:
			m[k.Name] = *f == True
		case *int:
			m[k.Name] = *f
		case *int64:
			m[k.Name] = *f
		}
	}
	return m
}
