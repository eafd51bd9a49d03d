package doctor

import (
	"fmt"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// metadataOptions returns the options of this instance's metadata service as the signer read
// them from EC2 at the last enrollment: the machine cannot see them. They are unknown if the
// signer did not send them, and on another instance's disk.
func (f *Facts) metadataOptions() protocol.MetadataOptions {
	if f.State == nil || f.State.Instance.InstanceID.String() != f.instanceID() {
		return protocol.MetadataOptions{}
	}
	return f.State.MetadataOptions
}

// asOf says when the signer read the options.
func (f *Facts) asOf() string {
	return "as EC2 said at " + f.State.EnrolledAt.UTC().Format(time.RFC3339)
}

// readAgain says when a finding about the options can change.
func (f *Facts) readAgain() string {
	return "the signer reads it again at the next renewal, after " + f.State.RenewAfter.UTC().Format(time.RFC3339)
}

func checkHopLimit(f *Facts) []Finding {
	const name = "hop limit"
	options := f.metadataOptions()
	switch options.HopLimit {
	case 0:
		return []Finding{{
			Check: name, Level: OK, Text: "the machine cannot see its hop limit; 1 is enough, unless hallmark runs in a container",
			Command:   "aws ec2 describe-instances --query 'Reservations[].Instances[].MetadataOptions' --instance-ids " + f.instanceID(),
			Elsewhere: true,
		}}
	case 1:
		return fine(name, "the hop limit is 1, "+f.asOf())
	}
	change := "--http-put-response-hop-limit 1"
	if options.HTTPTokens == protocol.TokensRequired {
		// EC2's documents disagree about whether a change of one option keeps this one.
		change += " --http-tokens required"
	}
	return []Finding{{
		Check: name, Level: Warning,
		Text:    fmt.Sprintf("the hop limit is %d, %s: containers on this machine can reach the metadata service and its credentials", options.HopLimit, f.asOf()),
		Fix:     "set it to 1, unless a container needs the metadata service; " + f.readAgain(),
		Command: f.modifyOptions(change), Elsewhere: true,
	}}
}

func checkTokens(f *Facts) []Finding {
	const name = "session tokens"
	switch f.metadataOptions().HTTPTokens {
	case protocol.TokensRequired:
		return fine(name, "the metadata service requires session tokens, "+f.asOf())
	case protocol.TokensOptional:
		return []Finding{{
			Check: name, Level: Warning,
			Text: "the metadata service also answers requests without a session token, " + f.asOf() +
				": a program that can be tricked into fetching a URL (SSRF) exposes the machine's credentials",
			Fix:     "require tokens once every program on this machine sends them; " + f.readAgain(),
			Command: f.modifyOptions("--http-tokens required"), Elsewhere: true,
		}}
	}
	return nil // the check of the hop limit says how to see both
}

// modifyOptions returns the command that changes options. AWS's own examples always set the
// endpoint, too.
func (f *Facts) modifyOptions(change string) string {
	return "aws ec2 modify-instance-metadata-options --http-endpoint enabled " + change + " --instance-id " + f.instanceID()
}
