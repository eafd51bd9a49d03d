package enroll

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// insert puts text after the first brace of a JSON object.
func insert(object []byte, text string) []byte {
	return bytes.Replace(object, []byte("{"), []byte("{"+text), 1)
}

func inBody(text string) func(*world, *attempt) {
	return func(_ *world, a *attempt) {
		a.http = func(r *entry.Request) { r.Body = insert(r.Body, text) }
	}
}

func inPayload(text string) func(*world, *attempt) {
	return func(_ *world, a *attempt) {
		a.encoded = func(p []byte) []byte { return insert(p, text) }
	}
}

func body(text string) func(*world, *attempt) {
	return func(_ *world, a *attempt) {
		a.http = func(r *entry.Request) { r.Body = []byte(text) }
	}
}

// requestAttacks are about form and size: what the signer reads before it verifies anything.
func requestAttacks() map[string]attack {
	return map[string]attack{
		"GET": {func(_ *world, a *attempt) {
			a.http = func(r *entry.Request) { r.Method = http.MethodGet }
		}, protocol.CodeMethodNotAllowed, untilNothing, nil},
		"another content type": {func(_ *world, a *attempt) {
			a.http = func(r *entry.Request) { r.ContentType = "text/plain" }
		}, protocol.CodeMalformed, untilNothing, nil},
		"body over 64 KiB": {func(_ *world, a *attempt) {
			a.http = func(r *entry.Request) {
				r.Body = append(r.Body, bytes.Repeat([]byte(" "), protocol.MaxRequestBytes)...)
			}
		}, protocol.CodeTooLarge, untilNothing, nil},
		"empty body": {func(_ *world, a *attempt) {
			a.http = func(r *entry.Request) { r.Body = nil }
		}, protocol.CodeMalformed, untilNothing, nil},
		"not JSON": {func(_ *world, a *attempt) {
			a.http = func(r *entry.Request) { r.Body = []byte("hello") }
		}, protocol.CodeMalformed, untilNothing, nil},
		"unknown field": {func(_ *world, a *attempt) {
			a.http = func(r *entry.Request) { r.Body = bytes.Replace(r.Body, []byte("{"), []byte(`{"role":"admin",`), 1) }
		}, protocol.CodeMalformed, untilNothing, nil},
		"data after the request": {func(_ *world, a *attempt) {
			a.http = func(r *entry.Request) { r.Body = append(r.Body, '{') }
		}, protocol.CodeMalformed, untilNothing, nil},
		"unknown field in the payload": {func(_ *world, a *attempt) {
			a.encoded = func(p []byte) []byte { return bytes.Replace(p, []byte("{"), []byte(`{"hostname":"bastion",`), 1) }
		}, protocol.CodeMalformed, untilNothing, nil},
		"another version, with fields of its own": {func(_ *world, a *attempt) {
			a.payload.Version = 3
			a.encoded = func(p []byte) []byte { return bytes.Replace(p, []byte("{"), []byte(`{"new":1,`), 1) }
		}, protocol.CodeUnsupportedVersion, untilNothing, nil},
		"another audience": {func(_ *world, a *attempt) {
			a.payload.Audience = "hallmark.example.net"
		}, protocol.CodeAudienceMismatch, untilNothing, nil},
		"no host keys": {func(_ *world, a *attempt) {
			a.payload.HostKeys = []string{}
		}, protocol.CodeHostKeyInvalid, untilNothing, nil},
		"too many host keys": {func(w *world, a *attempt) {
			for len(a.keys) <= protocol.MaxHostKeys {
				a.keys = append(a.keys, sshkeytest.NewSigner(w.t))
			}
		}, protocol.CodeHostKeyInvalid, untilNothing, nil},
		"one host key twice": {func(_ *world, a *attempt) {
			a.keys[1] = a.keys[0]
		}, protocol.CodeHostKeyInvalid, untilNothing, nil},
		"a short RSA key": {func(w *world, a *attempt) {
			a.payload.HostKeys = []string{sshkey.Line(a.keys[0].PublicKey()), sshkey.Line(newRSA(w.t, 1024).PublicKey())}
		}, protocol.CodeHostKeyInvalid, untilNothing, nil},
		"a certificate as host key": {func(w *world, a *attempt) {
			certificate := must(fakeCluster{w}.SignHostKey(w.t.Context(), a.keys[0].PublicKey(), []string{"*"}, time.Hour))
			a.payload.HostKeys = []string{sshkey.Line(certificate), sshkey.Line(a.keys[1].PublicKey())}
			w.calls = nil
		}, protocol.CodeHostKeyInvalid, untilNothing, nil},

		"null": {body("null"), protocol.CodeMalformed, untilNothing, nil},
		"list": {body("[]"), protocol.CodeMalformed, untilNothing, nil},
		"cut short": {func(_ *world, a *attempt) {
			a.http = func(r *entry.Request) { r.Body = r.Body[:len(r.Body)-1] }
		}, protocol.CodeMalformed, untilNothing, nil},
		"deep JSON":                  {body(strings.Repeat("[", 60000)), protocol.CodeMalformed, untilNothing, nil},
		"deep JSON in a field":       {body(`{"signatures":` + strings.Repeat("[", 60000)), protocol.CodeMalformed, untilNothing, nil},
		"deep JSON in the payload":   {inPayload(`"x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + ","), protocol.CodeMalformed, untilNothing, nil},
		"a number without end":       {body(`{"payload":1` + strings.Repeat("0", 60000) + "}"), protocol.CodeMalformed, untilNothing, nil},
		"bad UTF-8":                  {inBody("\"\xff\":1,"), protocol.CodeMalformed, untilNothing, nil},
		"duplicate key":              {inBody(`"signatures":[],`), protocol.CodeMalformed, untilNothing, nil},
		"duplicate key, escaped":     {inBody(`"signature\u0073":[],`), protocol.CodeMalformed, untilNothing, nil},
		"key in another case":        {inBody(`"Payload":"e30=",`), protocol.CodeMalformed, untilNothing, nil},
		"key in a look-alike letter": {inBody(`"\u017fignatures":[],`), protocol.CodeMalformed, untilNothing, nil},
		"duplicate key in the payload": {inPayload(`"audience":"hallmark.example.net",`),
			protocol.CodeMalformed, untilNothing, nil},
		"payload's key in another case": {inPayload(`"HostKeys":[],`), protocol.CodeMalformed, untilNothing, nil},
		"payload that is no object": {func(_ *world, a *attempt) {
			a.encoded = func([]byte) []byte { return []byte(`"hello"`) }
		}, protocol.CodeMalformed, untilNothing, nil},
		"version as text": {func(_ *world, a *attempt) {
			a.encoded = func(p []byte) []byte { return bytes.Replace(p, []byte(`"version":2`), []byte(`"version":"2"`), 1) }
		}, protocol.CodeMalformed, untilNothing, nil},

		// Only somebody who mistakes the body for something else would send these.
		"a function URL's event as the body": {body(`{"version":"2.0","requestContext":{"http":{"method":"POST"}},"body":"{}"}`),
			protocol.CodeMalformed, untilNothing, nil},
		"an EventBridge event as the body": {body(`{"version":"0","detail-type":"EC2 Instance State-change Notification",` +
			`"source":"aws.ec2","account":"111122223333","detail":{"instance-id":"i-0a1b2c3d4e5f60718","state":"terminated"}}`),
			protocol.CodeMalformed, untilNothing, nil},

		// The caller may not choose what only verified facts decide (step-ca lets the caller
		// choose the certificate's names unless disableCustomSANs is set).
		"step-ca: names of the caller's choice": {inPayload(`"principals":["bastion"],`), protocol.CodeMalformed, untilNothing, nil},
		"labels of the caller's choice":         {inPayload(`"labels":{"env":"prod"},`), protocol.CodeMalformed, untilNothing, nil},
		"a lifetime of the caller's choice":     {inPayload(`"ttl":"8760h",`), protocol.CodeMalformed, untilNothing, nil},

		// A name that could be mistaken for one of Hallmark's members is still another name.
		"audience with a slash": {func(_ *world, a *attempt) { a.payload.Audience = testAudience + "/" },
			protocol.CodeAudienceMismatch, untilNothing, nil},
		"audience in another case": {func(_ *world, a *attempt) { a.payload.Audience = strings.ToUpper(testAudience) },
			protocol.CodeAudienceMismatch, untilNothing, nil},
		"audience with a port": {func(_ *world, a *attempt) { a.payload.Audience = testAudience + ":443" },
			protocol.CodeAudienceMismatch, untilNothing, nil},
		"audience with a scheme": {func(_ *world, a *attempt) { a.payload.Audience = "https://" + testAudience },
			protocol.CodeAudienceMismatch, untilNothing, nil},
		"audience with a dot": {func(_ *world, a *attempt) { a.payload.Audience = testAudience + "." },
			protocol.CodeAudienceMismatch, untilNothing, nil},
		"no audience": {func(_ *world, a *attempt) { a.payload.Audience = "" }, protocol.CodeAudienceMismatch, untilNothing, nil},

		// A host key line is a key and nothing else.
		"host key with options": {keyLine(func(key string) string { return `cert-authority ` + key }),
			protocol.CodeHostKeyInvalid, untilNothing, nil},
		"host key with a comment": {keyLine(func(key string) string { return key + " root@bastion" }),
			protocol.CodeHostKeyInvalid, untilNothing, nil},
		"host key with a second line": {keyLine(func(key string) string { return key + "\n" + key }),
			protocol.CodeHostKeyInvalid, untilNothing, nil},
		"security key": {keyLine(func(string) string { return securityKey() }), protocol.CodeHostKeyInvalid, untilNothing, nil},
		"DSA key": {keyLine(func(string) string { return "ssh-dss AAAAB3NzaC1kc3MAAACBAP0=" }),
			protocol.CodeHostKeyInvalid, untilNothing, nil},
		"SPIRE x509pop before 1.13.4: a key that is costly to verify with": {keyLine(func(string) string { return hugeRSA() }),
			protocol.CodeHostKeyInvalid, untilNothing, nil},
		"the cluster's CA key, without its private key": {func(w *world, a *attempt) {
			a.payload.HostKeys = []string{sshkey.Line(a.keys[0].PublicKey()), sshkey.Line(w.hostCA.PublicKey())}
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
	}
}

// reporting is a request with this report about the machine.
func reporting(report string) func(*world, *attempt) { return inPayload(`"report":` + report + ",") }

// rejecting is a request with this rejection.
func rejecting(members string) func(*world, *attempt) {
	return reporting(`{"rejected":{` + members + `}}`)
}

// reportAttacks are about what a machine says about itself. The signer reads it before
// anything is proved, logs it once the caller is proved, and bases no decision on it.
func reportAttacks() map[string]attack {
	const good = `"code":"not_presented","requestId":"request-0","detail":"sshd presents another"`
	rows := map[string]attack{
		"report in a request of version 1": {func(w *world, a *attempt) {
			a.payload.Version = protocol.FirstVersion
			rejecting(good)(w, a)
		}, protocol.CodeMalformed, untilNothing, nil},
		"version 3": {func(w *world, a *attempt) {
			a.payload.Version = 3
			rejecting(good)(w, a)
		}, protocol.CodeUnsupportedVersion, untilNothing, nil},
		"report changed after signing": {func(w *world, a *attempt) {
			a.payload.Report = &protocol.Report{Rejected: protocol.NewRejection(protocol.RejectedNotPresented, "request-0", "no")}
			a.request = func(r *protocol.Request) {
				r.Payload = bytes.Replace(r.Payload, []byte("not_presented"), []byte("logins_blocked"), 1)
			}
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
		"report that says what a policy decides": {
			reporting(`{"hostname":"bastion","principals":["*"],"labels":{"env":"prod"},"rejected":{` + good + `}}`),
			codeGranted, all, func(t *testing.T, w *world, _ *attempt, got protocol.Response) {
				if got.Node.Hostname != testHostname || len(got.Principals) != 4 || strings.Contains(w.log.String(), "bastion") {
					t.Errorf("granted %+v; log: %s", got, w.log.String())
				}
			}},
		"report with members of a later release": {
			reporting(`{"health":{"deep":[[[]]],"n":1.5},"sshd":null}`),
			codeGranted, all, func(t *testing.T, w *world, _ *attempt, got protocol.Response) {
				if got.Version != protocol.Version || strings.Contains(w.log.String(), "deep") {
					t.Errorf("granted %+v; log: %s", got, w.log.String())
				}
			}},
		"request of version 1": {func(_ *world, a *attempt) { a.payload.Version = protocol.FirstVersion },
			codeGranted, all, func(t *testing.T, _ *world, _ *attempt, got protocol.Response) {
				if got.Version != protocol.FirstVersion {
					t.Errorf("answer of version %d", got.Version)
				}
			}},
		"report with a code that is not known": {
			rejecting(`"code":"later_reason","requestId":"","detail":""`),
			codeGranted, all, func(t *testing.T, w *world, _ *attempt, _ protocol.Response) {
				if !strings.Contains(w.log.String(), `"machine_rejected":"later_reason"`) {
					t.Errorf("log: %s", w.log.String())
				}
			}},
	}
	for name, report := range map[string]string{
		"report of 5 KiB":                `{"x":"` + strings.Repeat("a", 5<<10) + `"}`,
		"report that is a list":          `[]`,
		"report that is null":            `null`,
		"report that is text":            `"fine"`,
		"report that is deep":            strings.Repeat(`[`, 4000),
		"report with 17 members":         `{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1,"k":1,"l":1,"m":1,"n":1,"o":1,"p":1,"q":1}`,
		"report with a member twice":     `{"x":1,"x":1}`,
		"report with a member like ours": `{"Rejected":{}}`,
		"report with a look-alike":       `{"\u0440ejected":{}}`,
		"report with a long name":        `{"` + strings.Repeat("x", 33) + `":1}`,
		"rejection that is null":         `{"rejected":null}`,
		"rejection that is a list":       `{"rejected":[]}`,
		"rejection that is empty":        `{"rejected":{}}`,
		"rejection with another member":  `{"rejected":{` + good + `,"level":"debug"}}`,
		"rejection with a member twice":  `{"rejected":{` + good + `,"code":"x"}}`,
	} {
		rows[name] = attack{reporting(report), protocol.CodeMalformed, untilNothing, nil}
	}
	for name, members := range map[string]string{
		"code that is a number":          `"code":7`,
		"code in capitals":               `"code":"NOT_PRESENTED"`,
		"code of 33 letters":             `"code":"` + strings.Repeat("a", 33) + `"`,
		"code with a line break":         `"code":"a\nb"`,
		"request id with a quote":        `"code":"x","requestId":"a\"b"`,
		"request id of 65 letters":       `"code":"x","requestId":"` + strings.Repeat("a", 65) + `"`,
		"request id that is an object":   `"code":"x","requestId":{}`,
		"detail of 301 bytes":            `"code":"x","detail":"` + strings.Repeat("a", 301) + `"`,
		"detail with a line break":       `"code":"x","detail":"a\nlevel=INFO"`,
		"detail that clears the screen":  `"code":"x","detail":"\u001b[2J"`,
		"detail that turns the text":     `"code":"x","detail":"\u202egnihton"`,
		"detail with an invisible space": `"code":"x","detail":"a\u200bb"`,
		"detail with a line separator":   `"code":"x","detail":"a\u2028b"`,
		"detail that is a list":          `"code":"x","detail":["a"]`,
		"detail with half a character":   `"code":"x","detail":"\ud800\u0007"`,
	} {
		rows["rejection: "+name] = attack{rejecting(members), protocol.CodeMalformed, untilNothing, nil}
	}
	return rows
}

// keyLine changes the line of the second host key.
func keyLine(change func(string) string) func(*world, *attempt) {
	return func(_ *world, a *attempt) {
		a.payload.HostKeys = []string{sshkey.Line(a.keys[0].PublicKey()), change(sshkey.Line(a.keys[1].PublicKey()))}
	}
}

// securityKey is a key of a FIDO token (OpenSSH PROTOCOL.u2f), which signs a counter and flags
// together with the message.
func securityKey() string {
	blob := ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, make([]byte, 32), "ssh:"})
	return sshkey.Line(must(ssh.ParsePublicKey(blob)))
}

// hugeRSA has 16384 bits: verifying with it takes longer than making it up.
func hugeRSA() string {
	modulus := append([]byte{0}, bytes.Repeat([]byte{0xff}, 2048)...)
	return sshkey.Line(must(ssh.ParsePublicKey(ssh.Marshal(struct {
		Type string
		E, N []byte
	}{ssh.KeyAlgoRSA, []byte{1, 0, 1}, modulus}))))
}

// message changes the parts of the signed document.
func message(change func(m *identitytest.Message, rogue *identitytest.Region)) func(*world, *attempt) {
	return func(_ *world, a *attempt) {
		a.signed = func([]byte) []byte {
			m := must(a.region.Message(must(json.Marshal(a.document))))
			change(m, regions()["hm-test-3"])
			return identitytest.Text(m.BER())
		}
	}
}

// documentAttacks are about the identity document. internal/identity has the complete table of
// them; these show that the signer checks.
func documentAttacks() map[string]attack {
	forged := []byte(`{"accountId":"111122223333","instanceId":"i-0123456789abcdef0","region":"hm-test-1"}`)
	return map[string]attack{
		"forged document": {func(_ *world, a *attempt) {
			a.signed = func(text []byte) []byte {
				forger := regions()["hm-test-3"]
				return must(forger.Sign(must(json.Marshal(a.document))))
			}
		}, protocol.CodeIdentityInvalid, untilNothing, nil},
		"truncated document": {func(_ *world, a *attempt) {
			a.signed = func(text []byte) []byte { return text[:len(text)/2] }
		}, protocol.CodeIdentityInvalid, untilNothing, nil},
		"over-long document": {func(_ *world, a *attempt) {
			a.signed = func(text []byte) []byte { return append(text, bytes.Repeat([]byte("\n"), identity.MaxBytes)...) }
		}, protocol.CodeIdentityInvalid, untilNothing, nil},
		"document of one region signed by another": {func(_ *world, a *attempt) {
			a.region = regions()["hm-test-2"]
		}, protocol.CodeIdentityInvalid, untilNothing, nil},
		"document of a region without a key": {func(_ *world, a *attempt) {
			a.region = regions()["hm-test-3"]
			a.document["region"] = "hm-test-3"
		}, protocol.CodeIdentityInvalid, untilNothing, nil},
		"no document": {func(_ *world, a *attempt) {
			a.signed = func([]byte) []byte { return nil }
		}, protocol.CodeIdentityInvalid, untilNothing, nil},

		"SPIRE before 1.14.6: another document beside the signed one": {
			inPayload(`"document":{"instanceId":"i-0123456789abcdef0"},`), protocol.CodeMalformed, untilNothing, nil},
		"PKCS#7: detached content": {message(func(m *identitytest.Message, _ *identitytest.Region) {
			m.Content = nil
		}), protocol.CodeIdentityInvalid, untilNothing, nil},
		"PKCS#7: a rogue's certificate in the bag": {message(func(m *identitytest.Message, rogue *identitytest.Region) {
			m.Content = forged
			m.Certificates = [][]byte{rogue.CertificateDER()}
			m.Signers[0] = must(rogue.SignAttributes(identitytest.Attributes(forged)...))
		}), protocol.CodeIdentityInvalid, untilNothing, nil},
		"SPIRE azure_imds before 1.15.2: the right certificate first in the bag, a rogue's signature": {message(func(m *identitytest.Message, rogue *identitytest.Region) {
			m.Content = forged
			m.Certificates = [][]byte{regions()[testRegion].CertificateDER(), rogue.CertificateDER()}
			m.Signers[0] = must(rogue.SignAttributes(identitytest.Attributes(forged)...))
		}), protocol.CodeIdentityInvalid, untilNothing, nil},
		"PKCS#7: attributes passed off as the content": {message(func(m *identitytest.Message, _ *identitytest.Region) {
			m.Content = identitytest.SortedSet(m.Signers[0].Attributes...)
			m.Signers[0].Attributes = nil
		}), protocol.CodeIdentityInvalid, untilNothing, nil},
		"PKCS#7: a second signer": {message(func(m *identitytest.Message, rogue *identitytest.Region) {
			m.Content = forged
			m.Signers = append(m.Signers, must(rogue.SignAttributes(identitytest.Attributes(forged)...)))
		}), protocol.CodeIdentityInvalid, untilNothing, nil},
		"PKCS#7: no signer": {message(func(m *identitytest.Message, _ *identitytest.Region) {
			m.Signers = nil
		}), protocol.CodeIdentityInvalid, untilNothing, nil},
		"PKCS#7: bytes after the message": {func(_ *world, a *attempt) {
			a.signed = func([]byte) []byte {
				m := must(a.region.Message(must(json.Marshal(a.document))))
				return identitytest.Text(append(m.BER(), 0))
			}
		}, protocol.CodeIdentityInvalid, untilNothing, nil},
		"the DSA or RSA-1024 form": {func(_ *world, a *attempt) {
			a.signed = func([]byte) []byte { return identitytest.Text(make([]byte, 128)) }
		}, protocol.CodeIdentityInvalid, untilNothing, nil},
		"document with a duplicate key": {signedText(func(text []byte) []byte {
			return insert(text, `"instanceId":"i-0123456789abcdef0",`)
		}), protocol.CodeIdentityInvalid, untilNothing, nil},
		"document with a key in another case": {signedText(func(text []byte) []byte {
			return bytes.Replace(text, []byte(`"instanceId"`), []byte(`"InstanceId"`), 1)
		}), protocol.CodeIdentityInvalid, untilNothing, nil},
		"instance id that is a path": {func(_ *world, a *attempt) {
			a.document["instanceId"] = "i-0a1b2c3d4e5f60718/../i-0123456789abcdef0"
		}, protocol.CodeIdentityInvalid, untilNothing, nil},
		"region that is a host": {func(_ *world, a *attempt) {
			a.document["region"] = "evil.example/"
		}, protocol.CodeIdentityInvalid, untilNothing, nil},
		"zone of another region": {func(_ *world, a *attempt) {
			a.document["availabilityZone"] = "hm-test-2a"
		}, protocol.CodeIdentityInvalid, untilNothing, nil},
	}
}

// signedText changes the document before the region signs it.
func signedText(change func([]byte) []byte) func(*world, *attempt) {
	return func(_ *world, a *attempt) {
		a.signed = func([]byte) []byte { return must(a.region.Sign(change(must(json.Marshal(a.document))))) }
	}
}

// listAttacks are about the deployment's lists, which the signer checks before every call.
func listAttacks() map[string]attack {
	return map[string]attack{
		"account not listed": {func(_ *world, a *attempt) {
			a.document["accountId"] = "999999999999"
		}, protocol.CodeNotAllowed, untilNothing, nil},
		"region not listed": {func(_ *world, a *attempt) {
			a.region = regions()["hm-test-2"]
			a.document["region"], a.document["availabilityZone"] = "hm-test-2", "hm-test-2a"
		}, protocol.CodeNotAllowed, untilNothing, nil},

		"account and region listed, but of another signer": {func(w *world, _ *attempt) {
			w.signer.Accounts, w.signer.Regions = []ec2ref.Account{"222222222222"}, []ec2ref.Region{"hm-test-2"}
		}, protocol.CodeNotAllowed, untilNothing, nil},
	}
}

// timeAttacks send evidence at another time or to another place than it was made for.
func timeAttacks() map[string]attack {
	return map[string]attack{
		"older than five minutes": {func(w *world, a *attempt) {
			a.date = w.now.Add(-protocol.MaxClockSkew - time.Second)
			a.payload.IssuedAt = a.date.UTC()
		}, protocol.CodeClockSkew, untilNothing, nil},
		"from the future": {func(w *world, a *attempt) {
			a.date = w.now.Add(protocol.MaxClockSkew + time.Second)
			a.payload.IssuedAt = a.date.UTC()
		}, protocol.CodeClockSkew, untilNothing, nil},
		"proof older than the payload says": {func(w *world, a *attempt) {
			a.date = w.now.Add(-time.Minute)
		}, protocol.CodeCallerProofInvalid, untilNothing, nil},
		"proof without a date": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Caller.Date = "" }
		}, protocol.CodeCallerProofInvalid, untilNothing, nil},

		"clock ten minutes behind": {func(w *world, a *attempt) {
			a.date = w.now.Add(-10 * time.Minute)
			a.payload.IssuedAt = a.date.UTC()
		}, protocol.CodeClockSkew, untilNothing, nil},
		"clock ten minutes ahead": {func(w *world, a *attempt) {
			a.date = w.now.Add(10 * time.Minute)
			a.payload.IssuedAt = a.date.UTC()
		}, protocol.CodeClockSkew, untilNothing, nil},
		"issued-at other than X-Amz-Date": {func(w *world, a *attempt) {
			a.payload.IssuedAt = w.now.Add(time.Second).UTC()
		}, protocol.CodeCallerProofInvalid, untilNothing, nil},
		"issued-at of the year 10000": {func(_ *world, a *attempt) {
			a.encoded = func(p []byte) []byte { return bytes.Replace(p, []byte(`"issuedAt":"2`), []byte(`"issuedAt":"12`), 1) }
		}, protocol.CodeMalformed, untilNothing, nil},
		"a captured request, later": {func(w *world, a *attempt) {
			captured := w.earlier(a)
			w.now = w.now.Add(protocol.MaxClockSkew + time.Second)
			a.http = func(r *entry.Request) { *r = captured }
		}, protocol.CodeClockSkew, untilNothing, nil},
		"a captured request, elsewhere": {func(w *world, a *attempt) {
			captured := w.earlier(a)
			w.signer.Audience = "hallmark.example.net"
			a.http = func(r *entry.Request) { *r = captured }
		}, protocol.CodeAudienceMismatch, untilNothing, nil},
		// It grants what the machine got: certificates for keys that the thief does not have.
		"a captured request, at once": {func(w *world, a *attempt) {
			captured := w.earlier(a)
			a.http = func(r *entry.Request) { *r = captured }
		}, codeGranted, renewal, func(t *testing.T, w *world, _ *attempt, _ protocol.Response) {
			if len(w.nodes) != 1 {
				t.Errorf("%d nodes", len(w.nodes))
			}
		}},
		"Vault, step-ca: first use by somebody else, with the document": {func(w *world, a *attempt) {
			a.request = func(r *protocol.Request) {
				r.Caller.Authorization = fakeProof(protocol.Bind(r.Payload), instanceWith(otherInstance))
			}
		}, protocol.CodeCallerProofInvalid, untilSTS, func(t *testing.T, w *world, _ *attempt, _ protocol.Response) {
			if record := must(w.ledger.Lookup(t.Context(), inTestAccount(testInstance))); record.Generation != 0 {
				t.Errorf("a stranger's use was recorded: %+v", record)
			}
		}},
	}
}

// renewal are the calls for an instance that has enrolled before.
const renewal = "sts ec2 connect claim issue confirm"

// hostKeyAttacks are about the host keys' signatures.
func hostKeyAttacks() map[string]attack {
	return map[string]attack{
		"no signatures": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Signatures = nil }
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
		"one signature missing": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Signatures = r.Signatures[:1] }
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
		"one signature too many": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Signatures = append(r.Signatures, r.Signatures[0]) }
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
		"signatures in another order": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) {
				r.Signatures[0], r.Signatures[1] = r.Signatures[1], r.Signatures[0]
			}
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
		"somebody else's host key": {func(w *world, a *attempt) {
			a.payload.HostKeys = []string{sshkey.Line(a.keys[0].PublicKey()), sshkey.Line(sshkeytest.NewSigner(w.t).PublicKey())}
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
		"signatures of another binding": {func(_ *world, a *attempt) {
			a.binding = func(protocol.Binding) protocol.Binding { return protocol.Bind([]byte("another payload")) }
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
		"payload changed after signing": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Payload = append(r.Payload, ' ') }
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},

		"SSHSIG of another namespace": {signatureOf(func(key ssh.Signer, b protocol.Binding) string {
			return armored(sshsig.Sign(bytes.NewReader(b.Message()), key, sshsig.HashSHA512, "file"))
		}), protocol.CodeHostKeyUnproved, untilNothing, nil},
		"SSHSIG with SHA-256": {signatureOf(func(key ssh.Signer, b protocol.Binding) string {
			return armored(sshsig.Sign(bytes.NewReader(b.Message()), key, sshsig.HashSHA256, protocol.SignatureNamespace))
		}), protocol.CodeHostKeyUnproved, untilNothing, nil},
		"SSHSIG with SHA-1": {func(w *world, a *attempt) {
			a.keys[0] = newRSA(w.t, 2048)
			signatureOf(sha1Signature)(w, a)
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
		"SSHSIG with another key inside": {func(w *world, a *attempt) {
			other := sshkeytest.NewSigner(w.t)
			signatureOf(func(_ ssh.Signer, b protocol.Binding) string {
				return must(identity.SignBinding(other, b))
			})(w, a)
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
		"SSHSIG that names our key over another's signature": {func(w *world, a *attempt) {
			other := sshkeytest.NewSigner(w.t)
			signatureOf(func(key ssh.Signer, b protocol.Binding) string {
				signature, err := sshsig.Sign(bytes.NewReader(b.Message()), other, sshsig.HashSHA512, protocol.SignatureNamespace)
				if err == nil {
					signature.PublicKey = key.PublicKey()
				}
				return armored(signature, err)
			})(w, a)
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
		"SSHSIG of a security key": {signatureOf(func(key ssh.Signer, b protocol.Binding) string {
			signature, err := sshsig.Sign(bytes.NewReader(b.Message()), key, sshsig.HashSHA512, protocol.SignatureNamespace)
			if err == nil {
				signature.Signature.Format = ssh.KeyAlgoSKED25519
			}
			return armored(signature, err)
		}), protocol.CodeHostKeyUnproved, untilNothing, nil},
		"SSHSIG with text around it": {signatureOf(func(key ssh.Signer, b protocol.Binding) string {
			return "hello\n" + must(identity.SignBinding(key, b))
		}), protocol.CodeHostKeyUnproved, untilNothing, nil},
		"SSHSIG over the payload instead of the binding": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) {
				r.Signatures[0] = armored(sshsig.Sign(bytes.NewReader(r.Payload), a.keys[0], sshsig.HashSHA512, protocol.SignatureNamespace))
			}
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
		"a signature of 60 kB": {signatureOf(func(ssh.Signer, protocol.Binding) string {
			return strings.Repeat("A", 50<<10)
		}), protocol.CodeHostKeyUnproved, untilNothing, nil},
		"a key added, the recorded one named but not signing": {func(w *world, a *attempt) {
			w.earlier(a)
			a.payload.HostKeys = nil
			a.keys[1] = sshkeytest.NewSigner(w.t)
			a.request = func(r *protocol.Request) { r.Signatures[0] = r.Signatures[1] }
		}, protocol.CodeHostKeyUnproved, untilNothing, nil},
	}
}

// signatureOf replaces the first key's signature.
func signatureOf(sign func(ssh.Signer, protocol.Binding) string) func(*world, *attempt) {
	return func(_ *world, a *attempt) {
		a.request = func(r *protocol.Request) { r.Signatures[0] = sign(a.keys[0], protocol.Bind(r.Payload)) }
	}
}

func armored(signature *sshsig.Signature, err error) string {
	if err != nil {
		panic(err)
	}
	return string(sshsig.Armor(signature))
}

// sha1Signature signs with ssh-rsa, as OpenSSH did before 8.8 (PROTOCOL.sshsig defines what is
// signed).
func sha1Signature(key ssh.Signer, b protocol.Binding) string {
	signature, err := sshsig.Sign(bytes.NewReader(b.Message()), key, sshsig.HashSHA512, protocol.SignatureNamespace)
	if err == nil {
		hash := sshsig.HashSHA512.Hash()
		hash.Write(b.Message())
		signed := ssh.Marshal(struct{ Namespace, Reserved, Algorithm, Hash string }{
			protocol.SignatureNamespace, "", sshsig.HashSHA512.String(), string(hash.Sum(nil)),
		})
		signature.Signature, err = key.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, slices.Concat([]byte("SSHSIG"), signed), ssh.KeyAlgoRSA)
	}
	return armored(signature, err)
}
