package interop

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// keys are folders with certificates, as peers take them.
type keys struct {
	ca      string // path of the certificate of the authority that all trust
	server  string // good for localhost
	client  string
	none    string // trusts the authority, has no certificate of its own
	elsehow string // a client that another authority vouches for, but trusts ours
	foreign string // trusts another authority only
}

func newKeys(t *testing.T, dir string) keys {
	t.Helper()
	ours := harness.NewAuthority(t, dir, "ours")
	other := harness.NewAuthority(t, dir, "other")
	k := keys{
		ca:      ours.CA(),
		server:  ours.Issue(t, "server", "server", "localhost", "127.0.0.1"),
		client:  ours.Issue(t, "client", "client"),
		none:    ours.Folder(t, "none"),
		elsehow: other.Issue(t, "elsehow", "client"),
		foreign: other.Folder(t, "foreign"),
	}
	// The client vouched for elsewhere trusts our server all the same.
	harness.CopyFile(t, k.ca, filepath.Join(k.elsehow, "ca-cert.pem"))
	return k
}

// withKeys names an export over TLS, as libnbd wants it.
func withKeys(s *harness.Server, export, folder string) string {
	return s.TCPURI("nbds", export) + "?tls-certificates=" + url.QueryEscape(folder)
}

// qemuKeys are the arguments with which qemu's tools reach an export over TLS.
func qemuKeys(s *harness.Server, export, folder, priority string) []string {
	object := "tls-creds-x509,id=tls,endpoint=client,dir=" + folder
	if priority != "" {
		object += ",priority=" + priority
	}
	opts := fmt.Sprintf("driver=nbd,host=localhost,port=%d,export=%s,tls-creds=tls", s.Port, export)
	return []string{"--object", object, "--image-opts", opts}
}

// tlsServers are the ways to configure TLS, and who gets in.
var tlsServers = []struct {
	name    string
	generic string // beside the certificates
	ca      bool   // demand certificates of clients
	export  string // lines of the export
	plain   bool   // a client without TLS gets in
	none    bool   // one without a certificate of its own
	elsehow bool   // one with a certificate that we do not trust
}{
	{name: "offered", plain: true, none: true, elsehow: true},
	{name: "offered, certificates demanded", ca: true, plain: true},
	{name: "forced", generic: "force_tls = true", none: true, elsehow: true},
	{name: "forced, certificates demanded", generic: "force_tls = true", ca: true},
	{name: "forced for the export", export: "force_tls = true", none: true, elsehow: true},
	{name: "forced for the export, certificates demanded", export: "force_tls = true", ca: true},
}

func TestTLS(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdinfo", "nbdcopy", "qemu-img"))
	for _, c := range tlsServers {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := harness.Dir(t)
			k := newKeys(t, dir)
			ca := ""
			if c.ca {
				ca = k.ca
			}
			data := harness.Random(50, 4*mib)
			s := harness.StartIn(t, dir, harness.Config{
				TCP:     true,
				Generic: c.generic + "\n" + harness.ServerLines(k.server, ca),
				Exports: section("disk", harness.Image(t, dir, "disk.img", data), c.export),
			})
			for _, who := range []struct {
				name, uri string
				ok        bool
			}{
				{"without TLS", s.TCPURI("nbd", "disk"), c.plain},
				{"without TLS, by unix socket", s.URI("disk"), c.plain},
				{"with a certificate", withKeys(s, "disk", k.client), true},
				{"without a certificate", withKeys(s, "disk", k.none), c.none},
				{"with a certificate from elsewhere", withKeys(s, "disk", k.elsehow), c.elsehow},
				{"trusting somebody else", withKeys(s, "disk", k.foreign), false},
			} {
				t.Run(who.name, func(t *testing.T) {
					t.Parallel()
					copyTLS(t, who.uri, data, who.ok)
				})
			}
			t.Run("qemu", func(t *testing.T) {
				t.Parallel()
				image := filepath.Join(dir, "disk.img")
				args := append([]string{"compare"}, qemuKeys(s, "disk", k.client, "")...)
				harness.Run(t, "qemu-img", append(args, "driver=raw,file.driver=file,file.filename="+image)...)
				if !c.none {
					harness.Refused(t, "qemu-img", append([]string{"info"}, qemuKeys(s, "disk", k.none, "")...)...)
				}
			})
		})
	}
}

// copyTLS looks at an export and copies it, which must succeed or be refused.
func copyTLS(t *testing.T, uri string, want []byte, ok bool) {
	t.Helper()
	if !ok {
		harness.Refused(t, "nbdinfo", "--no-content", uri)
		return
	}
	i := nbdinfo(t, uri)
	if len(i.Exports) != 1 || i.Exports[0].Size != int64(len(want)) {
		t.Fatalf("nbdinfo says %+v", i)
	}
	if tls := strings.HasPrefix(uri, "nbds"); i.TLS != tls {
		t.Errorf("nbdinfo says TLS: %t, want %t", i.TLS, tls)
	}
	to := filepath.Join(harness.Dir(t), "copy")
	harness.Run(t, "nbdcopy", uri, to)
	harness.Same(t, to, want)
}

// TestTLSVersions lets qemu insist on one version.
func TestTLSVersions(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("qemu-img"))
	dir := harness.Dir(t)
	k := newKeys(t, dir)
	s := harness.StartIn(t, dir, harness.Config{
		TCP:     true,
		Generic: "force_tls = true\n" + harness.ServerLines(k.server, k.ca),
		Exports: section("disk", "memory:4M"),
	})
	for _, c := range []struct {
		version string
		ok      bool
	}{
		{"1.3", true},
		{"1.2", true},
		{"1.1", false},
		{"1.0", false},
	} {
		t.Run(c.version, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"info"}, qemuKeys(s, "disk", k.client, "NORMAL:-VERS-ALL:+VERS-TLS"+c.version)...)
			if c.ok {
				harness.Run(t, "qemu-img", args...)
			} else {
				harness.Refused(t, "qemu-img", args...)
			}
		})
	}
}

// TestTLSPriority: what tlsprio says of versions holds for whoever connects.
func TestTLSPriority(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("qemu-img"))
	dir := harness.Dir(t)
	k := newKeys(t, dir)
	for only, other := range map[string]string{"1.3": "1.2", "1.2": "1.3"} {
		s := harness.Start(t, harness.Config{
			TCP:     true,
			Generic: "force_tls = true\ntlsprio = NORMAL:-VERS-TLS-ALL:+VERS-TLS" + only + "\n" + harness.ServerLines(k.server, k.ca),
			Exports: section("disk", "memory:4M"),
		})
		info := func(version string) []string {
			return append([]string{"info"}, qemuKeys(s, "disk", k.client, "NORMAL:-VERS-ALL:+VERS-TLS"+version)...)
		}
		harness.Run(t, "qemu-img", info(only)...)
		harness.Refused(t, "qemu-img", info(other)...)
		// The server chooses what both speak.
		harness.Run(t, "qemu-img", append([]string{"info"}, qemuKeys(s, "disk", k.client, "NORMAL:-VERS-ALL:+VERS-TLS1.2:+VERS-TLS1.3")...)...)
	}
}

// TestTLSUpload writes through TLS, with several connections.
func TestTLSUpload(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdcopy"))
	dir := harness.Dir(t)
	k := newKeys(t, dir)
	want := harness.Sparse(51, 48*mib)
	image := harness.Image(t, dir, "disk.img", harness.Random(52, len(want)))
	s := harness.StartIn(t, dir, harness.Config{
		TCP:     true,
		Generic: "force_tls = true\n" + harness.ServerLines(k.server, k.ca),
		Exports: section("disk", image),
	})
	from, back := harness.Image(t, dir, "from", want), filepath.Join(dir, "back")
	harness.Run(t, "nbdcopy", "--flush", from, withKeys(s, "disk", k.client))
	harness.Run(t, "nbdcopy", withKeys(s, "disk", k.client), back)
	harness.Same(t, back, want)
	s.Stop()
	harness.Same(t, image, want)
}

// TestTLSMixed has an export that demands TLS beside one that does not.
func TestTLSMixed(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdinfo"))
	dir := harness.Dir(t)
	k := newKeys(t, dir)
	s := harness.StartIn(t, dir, harness.Config{
		TCP:     true,
		Generic: harness.ServerLines(k.server, ""),
		Exports: section("open", "memory:1M") + section("closed", "memory:1M", "force_tls = true"),
	})
	nbdinfo(t, s.TCPURI("nbd", "open"))
	harness.Refused(t, "nbdinfo", s.TCPURI("nbd", "closed"))
	nbdinfo(t, withKeys(s, "open", k.none))
	nbdinfo(t, withKeys(s, "closed", k.none))
}
