package teleport

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckVersion(t *testing.T) {
	for version, tooOld := range map[string]bool{
		"12.4.23": true, "9.0.0": true, "13.3.8": false, "18.0.0-dev": false, "v15.1.0": false, "25.0.1": false, "": false, "unknown": false,
	} {
		if err := checkVersion(version); errors.Is(err, ErrDenied) != tooOld {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

func TestAdviceIsSilentOnTheUnknown(t *testing.T) {
	if hint := advice(errors.New("something else")); hint != "" {
		t.Errorf("advice %q", hint)
	}
}

// The texts are Teleport's own, as far as they matter.
func TestAdviceOnWhatTeleportSays(t *testing.T) {
	for text, want := range map[string]string{
		// 13.3.8
		`IAM join request uses unknown STS host "sts.mx-central-1.amazonaws.com".`:                  "teleport.login.region",
		`node selected non-FIPS STS endpoint (sts.us-west-2.amazonaws.com) for the IAM join method`: "fips: true",
		`"" can not join the cluster with role "Bot", the token is not valid`:                       "teleport.login.token",
		`node "" [] can not join the cluster, the token does not allow "Bot" role`:                  "roles: [Bot]",
		`this token does not support the IAM join method`:                                           "join_method: iam",
		`instance did not match any allow rules`:                                                    "TeleportTokenArn",
		// 18.3.0 and 19
		`rejecting IAM join request using STS host "sts.mx-central-1.amazonaws.com". This could mean that the Teleport Node attempting to join the cluster is running in a new AWS region. Error: AWS STS host is for unknown region "mx-central-1"`: "teleport.login.region",
		`rejecting IAM join request using STS host "sts.us-west-2.amazonaws.com". Error: node selected non-FIPS AWS STS endpoint while the Auth service is in FIPS mode`:                                                                             "fips: true",
		`rejecting IAM join request using STS host "sts.amazonaws.com". Error: client selected global AWS STS endpoint but server requires FIPS`:                                                                                                     "fips: true",
		`rejecting IAM join request using STS host "sts-fips.eu-west-1.amazonaws.com". Error: node selected FIPS AWS STS endpoint in region with no known FIPS endpoint`:                                                                             "teleport.login.region",
		`token expired or not found`: "teleport.login.token",
		`client requested join method iam, provision token only supports method token`: "join_method: iam",
		`can not join the cluster, the token does not allow role Bot`:                  "roles: [Bot]",
		`legacy join service has been disabled in this environment`:                    "TELEPORT_UNSTABLE_NO_AGENT_ID_SELECTION",
	} {
		if hint := advice(errors.New(text)); !strings.Contains(hint, want) {
			t.Errorf("%s: advice %q, want %q in it", text, hint, want)
		}
	}
}
