package protocol

import "encoding/json"

// MetadataOptions say who can use an instance's metadata service, as EC2's API returns them
// (Amazon EC2 API Reference, InstanceMetadataOptionsResponse). A machine cannot see its own
// options. They are for people to read: nothing that the signer or a machine does depends on
// them.
type MetadataOptions struct {
	// HTTPTokens is TokensRequired or TokensOptional, or empty if it is unknown.
	HTTPTokens string `json:"httpTokens,omitempty"`
	// HopLimit is the number of network hops that a session token may travel from the service,
	// from 1 to MaxHopLimit, or 0 if it is unknown. With 1, it does not get past the machine.
	HopLimit int `json:"httpPutResponseHopLimit,omitempty"`
}

const (
	// TokensRequired says that the service answers only requests with a session token (IMDSv2).
	TokensRequired = "required"
	// TokensOptional says that it also answers requests without one (IMDSv1).
	TokensOptional = "optional"

	// MaxHopLimit is the largest hop limit that EC2 accepts.
	MaxHopLimit = 64
)

// NewMetadataOptions returns options. A value that EC2 does not document is unknown.
func NewMetadataOptions(httpTokens string, hopLimit int) (o MetadataOptions) {
	if httpTokens == TokensRequired || httpTokens == TokensOptional {
		o.HTTPTokens = httpTokens
	}
	if 1 <= hopLimit && hopLimit <= MaxHopLimit {
		o.HopLimit = hopLimit
	}
	return o
}

// UnmarshalJSON reads what it can and never fails, so that no value here, however odd, keeps a
// machine from renewing its certificates or from reading its state.
func (o *MetadataOptions) UnmarshalJSON(data []byte) error {
	var members map[string]json.RawMessage
	if json.Unmarshal(data, &members) != nil {
		members = nil // not an object
	}
	var tokens string
	if json.Unmarshal(members["httpTokens"], &tokens) != nil {
		tokens = ""
	}
	var hopLimit int
	if json.Unmarshal(members["httpPutResponseHopLimit"], &hopLimit) != nil {
		hopLimit = 0
	}
	*o = NewMetadataOptions(tokens, hopLimit)
	return nil
}
