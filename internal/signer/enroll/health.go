package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// An instance's verified reports are limited before they cost a read of the ledger: its
// root user can sign as many as it likes.
const (
	healthBurst = 5
	healthEvery = 10 * time.Minute
)

// noteHealth records a machine's health report. The answer does not depend on it. A report
// that is not verified costs no call to any service: list is the cached list of CAs.
func (s *Signer) noteHealth(ctx context.Context, r entry.Request, list []byte) {
	if s.Health == nil {
		return
	}
	v, err := s.verifyHealth(r.Health, list)
	if err == nil && s.healthSeen.take(bucket{instance: v.instance}, healthBurst, healthEvery, s.now()) > 0 {
		return
	}
	if err == nil {
		err = s.recordHealth(ctx, v)
	}
	if err != nil {
		s.Log.LogAttrs(ctx, slog.LevelWarn, "health report not recorded",
			slog.String("request_id", r.ID), slog.Any("", v.instance), slog.String("source", r.Source), slog.String("error", shorten(err.Error())))
	}
}

// verifiedHealth is a health report that the instance made. The zero value is one that could not
// be verified: an unverified name has no place in the log.
type verifiedHealth struct {
	instance ec2ref.Instance
	report   ledger.HealthReport
}

func (s *Signer) recordHealth(ctx context.Context, v verifiedHealth) error {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	if err := s.checkMember(ctx, v.instance.Account); err != nil {
		return err
	}
	_, err := s.Health.ReportHealth(ctx, v.instance, v.report)
	return err
}

// checkMember refuses an account that is neither listed nor, by now, a member of the
// organization.
func (s *Signer) checkMember(ctx context.Context, account ec2ref.Account) error {
	if s.Organization == nil || slices.Contains(s.Accounts, account) {
		return nil
	}
	members, err := s.Organization.Current(ctx)
	if err != nil {
		return err
	}
	if !members.Has(account) {
		return errors.New("the account is no longer in the organization")
	}
	return nil
}

// verifyHealth checks a report: it was made for this signer and just now, and signed by a
// host key whose certificate one of the cluster's Host CAs issued for this instance's node.
// So a machine can report on its own node only, and a report is of no use later or
// elsewhere.
func (s *Signer) verifyHealth(value string, list []byte) (verifiedHealth, error) {
	signed, err := protocol.ParseSignedHealth(value)
	if err != nil {
		return verifiedHealth{}, err
	}
	h, err := protocol.ParseHealth(signed.Report)
	if err != nil {
		return verifiedHealth{}, err
	}
	i, err := ec2ref.ParseInstance(h.Instance)
	if err != nil {
		return verifiedHealth{}, fmt.Errorf("health report: %w", err)
	}
	if h.Audience != s.Audience {
		return verifiedHealth{}, errors.New("health report: it is for another signer")
	}
	if s.now().Sub(h.At).Abs() > protocol.MaxClockSkew {
		return verifiedHealth{}, errors.New("health report: its time is more than five minutes from the signer's")
	}
	// Whether a member's account is still one is asked later: this is before any proof.
	if listed := s.Organization != nil || slices.Contains(s.Accounts, i.Account); !listed || !slices.Contains(s.Regions, i.Region) {
		return verifiedHealth{}, errors.New("health report: account or region is not listed")
	}
	key, err := s.checkReporter(signed, i, list)
	if err != nil {
		return verifiedHealth{}, fmt.Errorf("health report: %w", err)
	}
	report := ledger.HealthReport{State: string(h.State), At: h.At, Fingerprint: ssh.FingerprintSHA256(key), Signer: s.Audience}
	return verifiedHealth{i, report}, nil
}

// checkReporter returns the host key that signed a report. The certificate comes first: its
// signature is the only proof that the key belongs to the node.
func (s *Signer) checkReporter(signed *protocol.SignedHealth, i ec2ref.Instance, list []byte) (ssh.PublicKey, error) {
	cert, err := hostcert.Parse(signed.Certificate)
	if err != nil {
		return nil, err
	}
	hosts, err := hostCAs(list)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(cert.ValidPrincipals, i.NodeID()) {
		return nil, errors.New("the certificate is not the instance's")
	}
	want := hostcert.Want{
		Key: cert.Key, Principals: cert.ValidPrincipals, CAs: hosts, MaxLifetime: policy.LongestLifetime, Roles: teleport.HostRoles(),
	}
	if err := hostcert.Check(cert, want, s.now()); err != nil {
		return nil, err
	}
	return cert.Key, identity.VerifyHealth(cert.Key, protocol.BindHealth(signed.Report), signed.Signature)
}

// hostCAs reads the Host CAs from the encoded list.
func hostCAs(list []byte) ([]ssh.PublicKey, error) {
	var cas protocol.CAs
	if err := json.Unmarshal(list, &cas); err != nil {
		return nil, fmt.Errorf("read the cached list of CAs: %w", err)
	}
	hosts := make([]ssh.PublicKey, 0, len(cas.HostCAs))
	for _, line := range cas.HostCAs {
		key, err := sshkey.Parse(line)
		if err != nil {
			return nil, fmt.Errorf("read the cached list of CAs: %w", err)
		}
		hosts = append(hosts, key)
	}
	return hosts, nil
}
