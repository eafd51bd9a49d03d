package teleport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/gravitational/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	// ErrNotFound says that the cluster does not have the requested object, or does not
	// show it to this login.
	ErrNotFound = errors.New("not found in Teleport")

	// ErrUnavailable says that the cluster did not answer or was too busy: the same call
	// may work later.
	ErrUnavailable = errors.New("no answer from Teleport")

	// ErrDenied says that the login is not valid, or not valid for this call, until
	// somebody changes it.
	ErrDenied = errors.New("refused by Teleport")

	// ErrExpired says that the login's certificate expired.
	ErrExpired = errors.New("expired")
)

// failed adds to an error of Teleport's API library what was being done, the kind of
// error if callers can act on it, and what to change.
func failed(doing string, err error) error {
	return explain(doing, kindOf(err), err)
}

// unreachable is failed for errors that only say that there is no connection.
func unreachable(doing string, err error) error {
	kind := kindOf(err)
	if kind == nil {
		kind = ErrUnavailable
	}
	return explain(doing, kind, err)
}

func explain(doing string, kind, err error) error {
	explained := fmt.Errorf("%s: %w", doing, err)
	if kind != nil {
		explained = fmt.Errorf("%s: %w: %w", doing, kind, err)
	}
	if hint := advice(err); hint != "" {
		return fmt.Errorf("%w (%s)", explained, hint)
	}
	return explained
}

func kindOf(err error) error {
	switch {
	case trace.IsNotFound(err):
		return ErrNotFound
	case trace.IsAccessDenied(err), hasCode(err, codes.Unauthenticated, codes.PermissionDenied),
		err != nil && strings.Contains(err.Error(), legacyJoinOff):
		return ErrDenied
	case isLost(err), trace.IsLimitExceeded(err), hasCode(err, codes.ResourceExhausted):
		return ErrUnavailable
	}
	return nil
}

// isLost reports whether the other end of the connection may be gone.
func isLost(err error) bool {
	return trace.IsConnectionProblem(err) || isTimeout(err) || hasCode(err, codes.DeadlineExceeded, codes.Unavailable)
}

// isTimeout reports whether the call timed out, here or slightly earlier on the server,
// which reports it without the code for it.
func isTimeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || strings.HasSuffix(err.Error(), context.DeadlineExceeded.Error())
}

// hasCode reports whether err has one of the codes, even if only in its text: a proxy
// wraps the auth service's answer to a join in its own error.
func hasCode(err error, any ...codes.Code) bool {
	return slices.ContainsFunc(any, func(code codes.Code) bool {
		return status.Code(err) == code || strings.Contains(err.Error(), "rpc error: code = "+code.String()+" desc = ")
	})
}

// legacyJoinOff is the message of Teleport 18 and 19 if their old join service is
// disabled.
const legacyJoinOff = "legacy join service has been disabled"

const (
	useFIPS     = "this auth service runs in FIPS mode: set fips: true in teleport.login"
	olderRegion = "this Teleport does not know the region: name an older one in teleport.login.region"
)

const notTeleport = "the server there is not Teleport: teleport.address takes the port of the proxy's web interface, or of the auth service"

// advice says what to change, as far as the error shows it. The settings it names are in
// deployment.yaml and in templates/teleport.
func advice(err error) string {
	invalid, rejected := errors.AsType[x509.CertificateInvalidError](err)
	network, failed := errors.AsType[*net.OpError](err)
	switch {
	case isA[x509.UnknownAuthorityError](err):
		return "the certificate at this address is signed by an unknown CA: check that teleport.address belongs to the login's cluster, " +
			"or, if the CA is private, set teleport.roots_file"
	case isA[x509.HostnameError](err):
		return "use a name that the certificate has in teleport.address"
	case rejected && invalid.Reason == x509.Expired:
		return "renew the certificate at teleport.address, unless the clock here is wrong"
	case isA[tls.RecordHeaderError](err):
		return notTeleport
	case isNoSuchHost(err):
		return "check the host in teleport.address, and that the function's VPC can resolve it"
	case failed && network.Op == "dial":
		return "check teleport.address, and that the function can connect to it (VpcConfig, route, security groups)"
	}
	return remoteAdvice(err.Error())
}

// isA reports whether an error of that type is in err's tree.
func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// remoteAdvice recognizes Teleport's messages, which have no codes. The texts are from
// 13.3.8, 18.3.0 and 19.0.0-prealpha.2. If a text changes, only the advice is missing.
func remoteAdvice(text string) string {
	for _, known := range []struct{ part, hint string }{
		{"non-FIPS", useFIPS},
		{"server requires FIPS", useFIPS},
		{"no known FIPS endpoint", "the STS of this region has no FIPS endpoint: name a region that has one in teleport.login.region"},
		{legacyJoinOff, "the auth service runs with TELEPORT_UNSTABLE_NO_AGENT_ID_SELECTION, and the server at teleport.address has no other join service: " +
			"update the proxies to Teleport 18 or later, or unset the variable"},
		{"the token is not valid", "Teleport has no join token of this name: create it from templates/teleport/token.yaml, or correct teleport.login.token"},
		{"token expired or not found", "Teleport has no join token of this name: create it from templates/teleport/token.yaml, or correct teleport.login.token"},
		{"does not support the IAM join method", "the join token needs join_method: iam"},
		{"provision token only supports method", "the join token needs join_method: iam"},
		{"does not allow \"Bot\" role", "the join token needs roles: [Bot]"},
		{"does not allow role Bot", "the join token needs roles: [Bot]"},
		{"did not match any allow rules", "the function's role is not in the token's list: its allow needs aws_account, and the aws_arn in the stack's output TeleportTokenArn"},
		{"unknown STS host", olderRegion},
		{"rejecting IAM join request using STS host", olderRegion},
		{"Signature expired", "the clock here is wrong, or the answer took too long"},
		{"Signature not yet current", "the clock here is wrong"},
		{"aws sts api returned status", "AWS did not confirm the function's credentials: check that the region in teleport.login.region is enabled in its account"},
		{"has requested role impersonation", "the bot may not use the role: put teleport.login.role into the roles of the bot (templates/teleport/bot.yaml)"},
		{"action \"create\" on \"host_cert\"", "the role of this login needs host_cert: [create], with a where that matches this cluster's name (templates/teleport/role.yaml)"},
		{"on \"node\"", "the role of this login needs node: [list, read, create, update, delete] (templates/teleport/role.yaml)"},
		{"tls: no application protocol", notTeleport},
		{"connection upgrade call", notTeleport},
		{"failed to switch Protocols", notTeleport},
		{"remote error: tls:", "Teleport does not accept this login's certificate: check that the login is for this cluster, not for a leaf cluster, and is newer than its last rotation"},
	} {
		if strings.Contains(text, known.part) {
			return known.hint
		}
	}
	return ""
}
