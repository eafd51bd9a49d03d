package enroll

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

const (
	testAccessKey = "ASIAHALLMARKTESTKEY0"
	testSecretKey = "secret/access+key"
	testARN       = "arn:aws:sts::" + testAccount + ":assumed-role/aws:ec2-instance/" + testInstance
)

// atSTS is what an attack at STS can change. The signer's own verifier asks an STS that
// verifies signatures as AWS does.
type atSTS struct {
	// arn is the ARN that STS returns for the credentials.
	arn string
	// proof changes what the machine signed.
	proof func(*protocol.CallerProof)
	// sign signs instead of the machine.
	sign func(b protocol.Binding, date string) protocol.CallerProof
	// answer answers instead of STS.
	answer http.HandlerFunc
}

func stsAttack(change func(*atSTS)) func(*world, *attempt) {
	return func(w *world, a *attempt) {
		s := &atSTS{arn: testARN}
		change(s)
		endpoint := sts.New(sts.Options{Region: testRegion, Now: func() time.Time { return w.now }})
		endpoint.Register(sts.Credential{
			AccessKeyID: testAccessKey, SecretAccessKey: testSecretKey, SessionToken: testSecret, ARN: s.arn,
		})
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			w.note("sts")
			if s.answer != nil {
				s.answer(rw, r)
				return
			}
			endpoint.ServeHTTP(rw, r)
		}))
		w.t.Cleanup(server.Close)
		w.signer.Callers = &identity.CallerVerifier{Endpoint: server.URL}
		a.request = func(r *protocol.Request) {
			r.Caller = s.callerProof(w.t.Context(), protocol.Bind(r.Payload), a.date)
		}
	}
}

func (s *atSTS) callerProof(ctx context.Context, b protocol.Binding, date time.Time) protocol.CallerProof {
	var proof protocol.CallerProof
	if s.sign != nil {
		proof = s.sign(b, date.UTC().Format("20060102T150405Z"))
	} else {
		creds := identity.Credentials{AccessKeyID: testAccessKey, SecretAccessKey: testSecretKey, SessionToken: testSecret}
		proof = must(identity.SignCaller(ctx, creds, testRegion, false, b, date))
	}
	if s.proof != nil {
		s.proof(&proof)
	}
	return proof
}

// authorization replaces a part of the Authorization header, which must be there.
func authorization(old, replacement string) func(*world, *attempt) {
	return stsAttack(func(s *atSTS) {
		s.proof = func(p *protocol.CallerProof) {
			changed := strings.Replace(p.Authorization, old, replacement, 1)
			if changed == p.Authorization {
				panic(fmt.Sprintf("%q is not in %q", old, p.Authorization))
			}
			p.Authorization = changed
		}
	})
}

func named(arn string) func(*world, *attempt) {
	return stsAttack(func(s *atSTS) { s.arn = arn })
}

func answering(answer http.HandlerFunc) func(*world, *attempt) {
	return stsAttack(func(s *atSTS) { s.answer = answer })
}

func writing(status int, text string) func(*world, *attempt) {
	return answering(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	})
}

// proofAttacks send somebody else's proof, or a proof of something else.
func proofAttacks() map[string]attack {
	return map[string]attack{
		"junk proof with a stolen document": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Caller.Authorization = "junk" }
		}, protocol.CodeCallerProofInvalid, untilSTS, nil},
		"proof for other keys": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) {
				r.Caller.Authorization = fakeProof(protocol.Bind([]byte("other keys")), theInstance())
			}
		}, protocol.CodeCallerProofInvalid, untilSTS, nil},
		"proof of another instance": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) {
				r.Caller.Authorization = fakeProof(protocol.Bind(r.Payload), instanceWith("i-0123456789abcdef0"))
			}
		}, protocol.CodeCallerProofInvalid, untilSTS, nil},
		"document of another instance": {func(_ *world, a *attempt) {
			a.document["instanceId"] = "i-0123456789abcdef0"
		}, protocol.CodeCallerProofInvalid, untilSTS, nil},
		"STS does not answer": {func(w *world, _ *attempt) {
			w.stsErr = identity.ErrSTSUnavailable
		}, protocol.CodeUpstream, untilSTS, nil},

		"document of A with proof of B, both of them real": {named(strings.Replace(testARN, testInstance, otherInstance, 1)),
			protocol.CodeCallerProofInvalid, untilSTS, nil},
		"session named like the instance by AssumeRole": {named("arn:aws:sts::" + testAccount + ":assumed-role/SomeRole/" + testInstance),
			protocol.CodeCallerProofInvalid, untilSTS, nil},
		"role named like the identity role, under a path": {named("arn:aws:sts::" + testAccount + ":assumed-role/x/aws:ec2-instance/" + testInstance),
			protocol.CodeCallerProofInvalid, untilSTS, nil},
		"CVE-2025-11621 of Vault: the same role and session in another account": {named(strings.Replace(testARN, testAccount, "999999999999", 1)),
			protocol.CodeCallerProofInvalid, untilSTS, nil},
		"ARN of another partition": {named(strings.Replace(testARN, "arn:aws:", "arn:aws-cn:", 1)),
			protocol.CodeCallerProofInvalid, untilSTS, nil},
		"session that begins with the instance's id": {named(testARN + "0"), protocol.CodeCallerProofInvalid, untilSTS, nil},
		"an IAM user with the role's name": {named("arn:aws:iam::" + testAccount + ":user/aws:ec2-instance/" + testInstance),
			protocol.CodeCallerProofInvalid, untilSTS, nil},
		"STS names another account than its ARN": {writing(http.StatusOK, identityXML("GetCallerIdentity", testARN, "999999999999")),
			protocol.CodeCallerProofInvalid, untilSTS, nil},
	}
}

// signatureAttacks change what was signed. A proof without the one right form costs no call at
// all.
func signatureAttacks() map[string]attack {
	return map[string]attack{
		"a real proof": {stsAttack(func(*atSTS) {}), codeGranted, all, checkOwnNames},

		"SigV4A": {authorization("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), protocol.CodeCallerProofInvalid, untilNothing, nil},
		"scope of another service": {authorization("/sts/", "/iam/"),
			protocol.CodeCallerProofInvalid, untilNothing, nil},
		"scope of another region": {authorization("/"+testRegion+"/", "/us-west-2/"),
			protocol.CodeCallerProofInvalid, untilNothing, nil},
		"scope of no region": {authorization("/"+testRegion+"/", "//"), protocol.CodeCallerProofInvalid, untilNothing, nil},
		"CVE-2020-16250 of Vault: one more signed header": {authorization("content-type;", "accept;content-type;"),
			protocol.CodeCallerProofInvalid, untilNothing, nil},
		"CVE-2020-16250 of Vault: a host of the caller's choice": {inBody(`"host":"evil.example",`),
			protocol.CodeMalformed, untilNothing, nil},
		"CVE-2020-16250 of Vault: a body of the caller's choice": {inBody(`"body":"QWN0aW9uPUdldFVzZXI=",`),
			protocol.CodeMalformed, untilNothing, nil},
		"unsigned binding":    {authorization(";x-hallmark-binding", ""), protocol.CodeCallerProofInvalid, untilNothing, nil},
		"unsigned host":       {authorization("host;", ""), protocol.CodeCallerProofInvalid, untilNothing, nil},
		"unsigned token":      {authorization("x-amz-security-token;", ""), protocol.CodeCallerProofInvalid, untilNothing, nil},
		"header signed twice": {authorization("host;", "host;host;"), protocol.CodeCallerProofInvalid, untilNothing, nil},
		"field twice":         {authorization(", Signature=", ", SignedHeaders=host, Signature="), protocol.CodeCallerProofInvalid, untilNothing, nil},
		"two Authorization headers in one": {stsAttack(func(s *atSTS) {
			s.proof = func(p *protocol.CallerProof) { p.Authorization += ", " + p.Authorization }
		}), protocol.CodeCallerProofInvalid, untilNothing, nil},
		"CRLF in Authorization": {stsAttack(func(s *atSTS) {
			s.proof = func(p *protocol.CallerProof) { p.Authorization += "\r\nX-Amz-Target: evil" }
		}), protocol.CodeCallerProofInvalid, untilNothing, nil},
		"CRLF in the token, and a second request behind it": {stsAttack(func(s *atSTS) {
			s.proof = func(p *protocol.CallerProof) {
				p.SecurityToken += "\r\n\r\nPOST / HTTP/1.1\r\n\r\nAction=GetUser"
			}
		}), protocol.CodeCallerProofInvalid, untilNothing, nil},
		"CRLF in the date": {stsAttack(func(s *atSTS) {
			s.proof = func(p *protocol.CallerProof) { p.Date += "\r\nHost: evil.example" }
		}), protocol.CodeCallerProofInvalid, untilNothing, nil},
		"presigned GET, sent as its URL": {inBody(`"url":"https://sts.hm-test-1.amazonaws.com/?Action=GetCallerIdentity",`),
			protocol.CodeMalformed, untilNothing, nil},

		// The form is right, but the signature covers something that the signer does not send.
		"presigned GET, its signature in the header": {stsAttack(func(s *atSTS) { s.sign = presignedGET }),
			protocol.CodeCallerProofInvalid, untilSTS, nil},
		"GetUser signed in place of GetCallerIdentity": {stsAttack(func(s *atSTS) {
			s.sign = signedBody("Action=GetUser&Version=2010-05-08")
		}), protocol.CodeCallerProofInvalid, untilSTS, nil},
		"AssumeRole signed in place of GetCallerIdentity": {stsAttack(func(s *atSTS) {
			s.sign = signedBody("Action=AssumeRole&RoleSessionName=" + testInstance + "&Version=2011-06-15")
		}), protocol.CodeCallerProofInvalid, untilSTS, nil},
		"two actions signed": {stsAttack(func(s *atSTS) {
			s.sign = signedBody("Action=GetCallerIdentity&Version=2011-06-15&Action=GetUser")
		}), protocol.CodeCallerProofInvalid, untilSTS, nil},
		"CVE-2022-2385 of aws-iam-authenticator: the action twice, once in another case": {stsAttack(func(s *atSTS) {
			s.sign = signedBody("Action=GetCallerIdentity&Version=2011-06-15&action=GetUser")
		}), protocol.CodeCallerProofInvalid, untilSTS, nil},
		"CVE-2022-2385 of aws-iam-authenticator: parameters of the caller's choice": {inBody(`"query":"Action=GetCallerIdentity&Action=GetUser",`),
			protocol.CodeMalformed, untilNothing, nil},
		"real proof for other keys": {func(w *world, a *attempt) {
			stsAttack(func(*atSTS) {})(w, a)
			sign := a.request
			a.request = func(r *protocol.Request) {
				payload := r.Payload
				r.Payload = []byte("a payload with other keys")
				sign(r)
				r.Payload = payload
			}
		}, protocol.CodeCallerProofInvalid, untilSTS, nil},
		"date moved on after signing": {func(w *world, a *attempt) {
			stsAttack(func(s *atSTS) {
				s.proof = func(p *protocol.CallerProof) { p.Date = w.now.Add(time.Second).UTC().Format("20060102T150405Z") }
			})(w, a)
			a.payload.IssuedAt = w.now.Add(time.Second).UTC()
		}, protocol.CodeCallerProofInvalid, untilSTS, nil},
		"token of another session": {stsAttack(func(s *atSTS) {
			s.proof = func(p *protocol.CallerProof) { p.SecurityToken = "b3RoZXI=" }
		}), protocol.CodeCallerProofInvalid, untilSTS, nil},
	}
}

// answerAttacks put something else in place of STS.
func answerAttacks() map[string]attack {
	good := identityXML("GetCallerIdentity", testARN, testAccount)
	return map[string]attack{
		"redirect to an STS that confirms anything": {answering(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/confirm" {
				_, _ = io.WriteString(w, good)
				return
			}
			http.Redirect(w, r, "/confirm", http.StatusTemporaryRedirect)
		}), protocol.CodeUpstream, untilSTS, nil},
		"HTML and 200":         {writing(http.StatusOK, "<html><body>Welcome</body></html>"), protocol.CodeUpstream, untilSTS, nil},
		"HTML and 403":         {writing(http.StatusForbidden, "<html><body>Blocked</body></html>"), protocol.CodeUpstream, untilSTS, nil},
		"nothing and 200":      {writing(http.StatusOK, ""), protocol.CodeUpstream, untilSTS, nil},
		"a huge answer":        {writing(http.StatusOK, good+strings.Repeat(" ", 1<<20)), protocol.CodeUpstream, untilSTS, nil},
		"two identities":       {writing(http.StatusOK, good+good), protocol.CodeUpstream, untilSTS, nil},
		"the identity and 202": {writing(http.StatusAccepted, good), protocol.CodeUpstream, untilSTS, nil},
		"throttled":            {writing(http.StatusBadRequest, strings.NewReplacer("CODE", "Throttling").Replace(errorXML)), protocol.CodeUpstream, untilSTS, nil},
		"an answer in JSON, as Vault once read it": {writing(http.StatusOK,
			`{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"`+testAccount+`","Arn":"`+testARN+`"}}}`),
			protocol.CodeUpstream, untilSTS, nil},
		"CVE-2020-16250 of Vault: the identity inside another action's answer": {writing(http.StatusOK,
			`<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><SubjectFromWebIdentityToken>`+
				good+`</SubjectFromWebIdentityToken></AssumeRoleWithWebIdentityResponse>`), protocol.CodeUpstream, untilSTS, nil},
		"an answer to another action": {writing(http.StatusOK, identityXML("GetUser", testARN, testAccount)),
			protocol.CodeUpstream, untilSTS, nil},
	}
}

// identityXML is STS's answer (AWS STS API Reference, GetCallerIdentity).
func identityXML(action, arn, account string) string {
	return fmt.Sprintf(`<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult>`+
		`<Arn>%[2]s</Arn><UserId>x</UserId><Account>%[3]s</Account></%[1]sResult></%[1]sResponse>`, action, arn, account)
}

const errorXML = `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>` +
	`<Code>CODE</Code><Message>m</Message></Error><RequestId>r</RequestId></ErrorResponse>`

// signedBody signs a request to STS with another body and everything else right.
func signedBody(body string) func(protocol.Binding, string) protocol.CallerProof {
	return func(b protocol.Binding, date string) protocol.CallerProof {
		r := must(http.NewRequest(http.MethodPost, "https://sts."+testRegion+".amazonaws.com/", nil))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
		r.Header.Set(protocol.BindingHeader, b.String())
		sum := sha256.Sum256([]byte(body))
		err := v4.NewSigner().SignHTTP(context.Background(), awsCredentials(), r, hex.EncodeToString(sum[:]), "sts", testRegion,
			must(time.Parse("20060102T150405Z", date)))
		if err != nil {
			panic(err)
		}
		return protocol.CallerProof{Authorization: r.Header.Get("Authorization"), Date: date, SecurityToken: testSecret}
	}
}

// presignedGET writes the signature of a presigned URL, which covers no binding, into a header
// of the right form.
func presignedGET(b protocol.Binding, date string) protocol.CallerProof {
	r := must(http.NewRequest(http.MethodGet, "https://sts."+testRegion+".amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15", nil))
	empty := sha256.Sum256(nil)
	signed, _, err := v4.NewSigner().PresignHTTP(context.Background(), awsCredentials(), r, hex.EncodeToString(empty[:]), "sts", testRegion,
		must(time.Parse("20060102T150405Z", date)))
	if err != nil {
		panic(err)
	}
	proof := signedBody("")(b, date)
	before, _, _ := strings.Cut(proof.Authorization, "Signature=")
	proof.Authorization = before + "Signature=" + must(url.Parse(signed)).Query().Get("X-Amz-Signature")
	return proof
}

func awsCredentials() aws.Credentials {
	return aws.Credentials{AccessKeyID: testAccessKey, SecretAccessKey: testSecretKey, SessionToken: testSecret}
}
