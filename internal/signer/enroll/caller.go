package enroll

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws/arn"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
)

// checkSender checks what the network and Lambda say about a request before anything reads
// its body. Its answer is the same as for an account that is not listed: the list of
// allowed sources is the operator's business.
func (s *Signer) checkSender(r entry.Request) error {
	if err := s.checkSource(r.Source); err != nil {
		return refuse(protocol.CodeNotAllowed, err)
	}
	if len(s.Endpoints) > 0 && !slices.Contains(s.Endpoints, r.Endpoint) {
		return refuse(protocol.CodeNotAllowed, fmt.Errorf("VPC endpoint %.64q is not in the deployment's list", r.Endpoint))
	}
	if s.RequireIAM && r.IAM == nil {
		return refuse(protocol.CodeNotAllowed, errors.New("the request is not signed with IAM credentials"))
	}
	return nil
}

func (s *Signer) checkSource(source string) error {
	if len(s.Sources) == 0 {
		return nil
	}
	address, err := netip.ParseAddr(source)
	if err != nil {
		return fmt.Errorf("source address: %w", err)
	}
	// An IPv4 address may arrive as ::ffff:192.0.2.1, which no IPv4 prefix contains.
	address = address.Unmap()
	if !slices.ContainsFunc(s.Sources, func(p netip.Prefix) bool { return p.Contains(address) }) {
		return fmt.Errorf("source %s is not in the deployment's list", address)
	}
	return nil
}

// checkIAM compares the IAM caller of the HTTP request with the instance in the document.
// This stops one account's credentials from submitting another account's document.
func checkIAM(c *entry.IAMCaller, d *identity.Document) error {
	if c == nil {
		return nil
	}
	who, err := arn.Parse(c.ARN)
	if err != nil {
		return refuse(protocol.CodeNotAllowed, fmt.Errorf("IAM caller: %w", err))
	}
	if c.Account != d.Instance.Account || who.AccountID != string(d.Instance.Account) {
		return refuse(protocol.CodeNotAllowed,
			fmt.Errorf("IAM caller %s belongs to account %s, but the document is for account %s", c.ARN, c.Account, d.Instance.Account))
	}
	if session := sessionName(who); strings.HasPrefix(session, "i-") && session != string(d.Instance.ID) {
		return refuse(protocol.CodeNotAllowed,
			fmt.Errorf("IAM caller is instance %s, but the document is for %s", session, d.Instance.ID))
	}
	return nil
}

// sessionName returns the session of an assumed role, or "". EC2 names the sessions
// of an instance profile by the instance's id
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html).
func sessionName(a arn.ARN) string {
	role, found := strings.CutPrefix(a.Resource, "assumed-role/")
	if !found {
		return ""
	}
	return role[strings.LastIndex(role, "/")+1:]
}
