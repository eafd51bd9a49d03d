// Package ec2ref identifies EC2 instances by account, region and id, with types that cannot be
// swapped.
//
// Text from outside becomes one of these types through a Parse function. A conversion such as
// Region(text) checks nothing; use it only for text that was parsed before, such as a value
// that the signer itself stored.
package ec2ref

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/google/uuid"
)

// Account is the number of an AWS account: twelve digits.
type Account string

// Region is the name of an AWS region, such as us-west-2.
type Region string

// InstanceID is the id of an EC2 instance, such as i-0123456789abcdef0.
type InstanceID string

// Place is an account's share of a region. Instances and images belong to a place.
type Place struct {
	Account Account
	Region  Region
}

// Instance names an instance. EC2 promises that an id is unique only within its place.
type Instance struct {
	Account Account
	Region  Region
	ID      InstanceID
}

// ParseAccount reads an account number (AWS Account Management, "View AWS account
// identifiers").
func ParseAccount(text string) (Account, error) {
	if len(text) != 12 || !consistsOf(text, isDigit) {
		return "", fmt.Errorf("%.64q is not an account number, such as 111122223333", text)
	}
	return Account(text), nil
}

// String returns the number.
func (a Account) String() string { return string(a) }

// maxRegion bounds a region's name, which becomes part of host names.
const maxRegion = 32

// ParseRegion reads the name of a region: an area, one to three words and a number.
// AWS adds regions without notice, so there is no list. The form allows nothing that
// could end a host name early or add a label to it.
func ParseRegion(text string) (Region, error) {
	if !isRegion(text) {
		return "", fmt.Errorf("%.64q is not an AWS region, such as us-west-2", text)
	}
	return Region(text), nil
}

func isRegion(text string) bool {
	if len(text) > maxRegion {
		return false
	}
	parts := strings.Split(text, "-")
	last := len(parts) - 1
	if last < 2 || last > 4 || !isWord(parts[0], 8) {
		return false
	}
	for _, word := range parts[1:last] {
		if !isWord(word, 16) {
			return false
		}
	}
	number := parts[last]
	return len(number) >= 1 && len(number) <= 2 && consistsOf(number, isDigit)
}

func isWord(text string, longest int) bool {
	return len(text) >= 2 && len(text) <= longest && consistsOf(text, isLetter)
}

// String returns the name.
func (r Region) String() string { return string(r) }

// ParseInstanceID reads an instance's id: "i-" and 17 hexadecimal digits, or 8 for an
// instance from before 2016 (EC2 User Guide, "Resource IDs").
func ParseInstanceID(text string) (InstanceID, error) {
	digits, ok := strings.CutPrefix(text, "i-")
	if !ok || (len(digits) != 8 && len(digits) != 17) || !consistsOf(digits, isHex) {
		return "", fmt.Errorf("%.64q is not an instance id, such as i-0123456789abcdef0", text)
	}
	return InstanceID(text), nil
}

// String returns the id.
func (i InstanceID) String() string { return string(i) }

// String returns "account/region".
func (p Place) String() string { return string(p.Account) + "/" + string(p.Region) }

// LogValue returns the fields account and region. Logged under the empty name, as in
// slog.Any("", place), they are next to the line's other fields.
func (p Place) LogValue() slog.Value {
	return slog.GroupValue(slog.String("account", string(p.Account)), slog.String("region", string(p.Region)))
}

// newPlace parses an account and a region. The error begins with "account: " or
// "region: ".
func newPlace(account, region string) (Place, error) {
	a, err := ParseAccount(account)
	if err != nil {
		return Place{}, fmt.Errorf("account: %w", err)
	}
	r, err := ParseRegion(region)
	if err != nil {
		return Place{}, fmt.Errorf("region: %w", err)
	}
	return Place{Account: a, Region: r}, nil
}

// NewInstance parses an account, a region and an instance id. The error begins with
// "account: ", "region: " or "instance: ".
func NewInstance(account, region, id string) (Instance, error) {
	at, err := newPlace(account, region)
	if err != nil {
		return Instance{}, err
	}
	i, err := ParseInstanceID(id)
	if err != nil {
		return Instance{}, fmt.Errorf("instance: %w", err)
	}
	return Instance{Account: at.Account, Region: at.Region, ID: i}, nil
}

// ParseInstance reads what Instance.String returns.
func ParseInstance(text string) (Instance, error) {
	parts := strings.Split(text, "/")
	if len(parts) != 3 {
		return Instance{}, fmt.Errorf("%.128q is not account/region/instance", text)
	}
	return NewInstance(parts[0], parts[1], parts[2])
}

// String returns "account/region/id". Stored ledger items and node ids depend on this
// form.
func (i Instance) String() string { return i.Place().String() + "/" + string(i.ID) }

// LogValue returns the fields account, region and instance, like Place's LogValue.
func (i Instance) LogValue() slog.Value {
	return slog.GroupValue(slog.Any("", i.Place()), slog.String("instance", string(i.ID)))
}

// Place returns the instance's place.
func (i Instance) Place() Place { return Place{Account: i.Account, Region: i.Region} }

// NodeID returns the name of the instance's node in Teleport: a UUIDv5 (RFC 9562) of
// Instance.String. Enrolling twice gives one node, and deleting it needs no lookup.
func (i Instance) NodeID() string {
	// Derived once from the DNS name of the project. Never change it: nodes in
	// people's clusters have names derived from it.
	namespace := uuid.NewSHA1(uuid.NameSpaceDNS, []byte("node.hallmark-ssh.github.com"))
	return uuid.NewSHA1(namespace, []byte(i.String())).String()
}

func consistsOf(text string, is func(byte) bool) bool {
	for n := range len(text) {
		if !is(text[n]) {
			return false
		}
	}
	return true
}

func isDigit(b byte) bool  { return '0' <= b && b <= '9' }
func isLetter(b byte) bool { return 'a' <= b && b <= 'z' }
func isHex(b byte) bool    { return isDigit(b) || 'a' <= b && b <= 'f' }
