package imds

import (
	"encoding/json"
	"fmt"
	"time"
)

// tree returns everything that can be read, by its path below the version.
func (s *Server) tree(trouble Trouble) (map[string]string, error) {
	i, region := s.options.Instance, s.options.Region.Name
	document, err := s.document()
	if err != nil {
		return nil, err
	}
	signed, err := s.options.Region.Sign(document)
	if err != nil {
		return nil, err
	}
	tree := map[string]string{
		"dynamic/instance-identity/document":          string(document),
		"dynamic/instance-identity/" + signedDocument: string(signed),

		"meta-data/ami-id":                      i.ImageID,
		"meta-data/hostname":                    i.Hostname,
		"meta-data/instance-id":                 i.ID,
		"meta-data/instance-type":               i.Type,
		"meta-data/local-hostname":              i.Hostname,
		"meta-data/local-ipv4":                  i.PrivateIP,
		"meta-data/placement/availability-zone": i.AvailabilityZone,
		"meta-data/placement/region":            region,
		"meta-data/services/domain":             "amazonaws.com",
		"meta-data/services/partition":          "aws",
	}
	if i.PublicKey != "" {
		tree["meta-data/public-keys/0/openssh-key"] = i.PublicKey
	}
	if i.UserData != "" {
		tree["user-data"] = i.UserData
	}
	for key, value := range i.Tags {
		tree["meta-data/tags/instance/"+key] = value
	}
	if s.options.Profile != (Credential{}) {
		if err := s.addProfile(tree); err != nil {
			return nil, err
		}
	}
	if !trouble.NoIdentityRole {
		return tree, s.addIdentityRole(tree)
	}
	return tree, nil
}

// profileRole is the name of the instance profile's role.
const profileRole = "machine"

func (s *Server) addProfile(tree map[string]string) error {
	credentials, err := encodeCredentials(s.options.Profile, s.now())
	if err != nil {
		return err
	}
	tree["meta-data/iam/security-credentials/"+profileRole] = credentials
	return nil
}

// encodeCredentials returns credentials in the service's format.
func encodeCredentials(c Credential, now time.Time) (string, error) {
	data, err := json.MarshalIndent(struct {
		Code, LastUpdated, Type string
		AccessKeyID             string `json:"AccessKeyId"`
		SecretAccessKey, Token  string
		Expiration              string
	}{
		"Success", now.UTC().Format(time.RFC3339), "AWS-HMAC", c.AccessKeyID, c.SecretAccessKey, c.SessionToken,
		c.Expires.UTC().Format(time.RFC3339),
	}, "", "  ")
	return string(data), err
}

func (s *Server) addIdentityRole(tree map[string]string) error {
	const base = "meta-data/identity-credentials/ec2/"
	now := s.now().UTC().Format(time.RFC3339)
	info, err := json.MarshalIndent(struct {
		Code, LastUpdated string
		AccountID         string `json:"AccountId"`
	}{"Success", now, s.options.Instance.AccountID}, "", "  ")
	if err != nil {
		return err
	}
	credentials, err := encodeCredentials(s.options.IdentityRole, s.now())
	if err != nil {
		return err
	}
	tree[base+"info"] = string(info)
	tree[base+"security-credentials/ec2-instance"] = credentials
	return nil
}

// document returns the identity document with the members that AWS gives it,
// null ones included, in AWS's layout.
func (s *Server) document() ([]byte, error) {
	i := s.options.Instance
	document, err := json.MarshalIndent(struct {
		AccountID               string   `json:"accountId"`
		Architecture            string   `json:"architecture"`
		AvailabilityZone        string   `json:"availabilityZone"`
		BillingProducts         []string `json:"billingProducts"`
		DevpayProductCodes      []string `json:"devpayProductCodes"`
		MarketplaceProductCodes []string `json:"marketplaceProductCodes"`
		ImageID                 string   `json:"imageId"`
		InstanceID              string   `json:"instanceId"`
		InstanceType            string   `json:"instanceType"`
		KernelID                *string  `json:"kernelId"`
		PendingTime             string   `json:"pendingTime"`
		PrivateIP               string   `json:"privateIp"`
		RamdiskID               *string  `json:"ramdiskId"`
		Region                  string   `json:"region"`
		Version                 string   `json:"version"`
	}{
		AccountID: i.AccountID, Architecture: i.Architecture, AvailabilityZone: i.AvailabilityZone,
		ImageID: i.ImageID, InstanceID: i.ID, InstanceType: i.Type,
		PendingTime: i.Started.UTC().Format(time.RFC3339), PrivateIP: i.PrivateIP,
		Region: s.options.Region.Name, Version: "2017-09-30",
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode identity document: %w", err)
	}
	return document, nil
}
