package agent

import (
	"context"
	"fmt"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/signerclient"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// Leave asks the signer to delete this machine's node. It succeeds if the signer says that
// there is nothing to delete: the machine never enrolled, has left already, or its instance
// ended. It returns a line that says what the signer did. The caller holds the machine's lock,
// and Leave changes nothing on the machine.
func (e *Enroller) Leave(ctx context.Context, conf *sshd.Effective) (outcome string, err error) {
	s, err := state.Load(e.stateDir)
	if err != nil {
		return "", err
	}
	keys := hostkey.Selection{Conf: conf, State: s}.Signing()
	if len(keys) == 0 {
		return "", fault.Newf(fault.Failed, "", "none of sshd's host keys can sign the request to leave")
	}
	ctx, cancel := context.WithTimeout(ctx, e.Timeout)
	defer cancel()
	answer, node, err := e.askToLeave(ctx, keys)
	code := signerclient.CodeOf(err)
	if code == protocol.CodeNotEnrolled || code == protocol.CodeInstanceEnded {
		return "the signer has no node for this machine", nil
	}
	if code == protocol.CodeMalformed || code == protocol.CodeUnsupportedVersion {
		return "", fault.Newf(fault.Refused, "update the signer", "the signer is too old to let a machine leave: %w", err)
	}
	if err != nil {
		return "", err
	}
	if answer.NodeID != node {
		return "", fault.Newf(fault.Failed, "look up the request id in the signer's log",
			"the signer's answer (request %.64q) is about node %.64q, but this instance is %s", answer.RequestID, answer.NodeID, node)
	}
	return fmt.Sprintf("the signer deleted node %s", node), nil
}

// askToLeave also returns the id of this machine's node.
func (e *Enroller) askToLeave(ctx context.Context, keys []hostkey.Key) (*protocol.LeaveResponse, string, error) {
	instance, err := e.metadata.Instance(ctx)
	if err != nil {
		return nil, "", err
	}
	document, err := e.metadata.IdentityDocument(ctx)
	if err != nil {
		return nil, "", err
	}
	creds, err := e.metadata.RoleCredentials(ctx)
	if err != nil {
		return nil, "", err
	}
	answer, err := e.signer.Leave(ctx, instance.Region, func(ctx context.Context, version int) ([]byte, error) {
		return e.prove(ctx, instance.Region, creds, keys, protocol.Payload{
			Version: version, IdentityDocument: document, Purpose: protocol.PurposeLeave,
		})
	})
	return answer, instance.Ref().NodeID(), err
}
