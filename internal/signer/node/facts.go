package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/strictyaml"
)

// Facts are what is known about an instance. All of it comes from the signed document, EC2 or
// the ledger, and none of it only from the caller. But anyone who may call ec2:CreateTags
// chooses the tags.
type Facts struct {
	Account    ec2ref.Account
	Region     ec2ref.Region
	InstanceID ec2ref.InstanceID

	// AccountName and AccountPath are the account's name in its organization, and the names of
	// the units above it, such as /Workloads/Production. They are empty if unknown.
	AccountName string
	AccountPath string

	VPC    string
	Subnet string
	Zone   string // availability zone
	// InstanceProfile is the ARN of the instance profile, or empty.
	InstanceProfile string

	Image string // id
	// ImageOwner is the account that owns the image, or empty if it is no longer known.
	ImageOwner ec2ref.Account
	// ImageOwnerMember says that the owner is an account of the organization that may enroll
	// instances.
	ImageOwnerMember bool
	// ImageTags are the image's tags. They are empty unless the instance's own account owns
	// the image: AWS shows them to no other account, and anyone who copies an image can forge
	// them.
	ImageTags map[string]string

	// LaunchTime is zero if it is unknown.
	LaunchTime time.Time
	// Enrolled says that the ledger has a confirmed enrollment of the instance. It replaces
	// the check of the instance's age.
	Enrolled bool

	PrivateIP  string
	PublicIP   string
	IPv6       string
	PrivateDNS string // host name within the VPC

	Tags map[string]string
}

// FactsOf returns what EC2 says about an instance and what the ledger remembers about its
// image.
func FactsOf(i *inventory.Instance, r ledger.Record) Facts {
	owner, tags := r.ImageOf(i.ImageID, i.ImageOwner, i.ImageTags)
	return Facts{
		Account:         i.OwnerID,
		Region:          i.Region,
		InstanceID:      i.ID,
		VPC:             i.VPC,
		Subnet:          i.Subnet,
		Zone:            i.AvailabilityZone,
		InstanceProfile: i.InstanceProfileARN,
		Image:           i.ImageID,
		ImageOwner:      owner,
		ImageTags:       tags,
		LaunchTime:      i.LaunchTime,
		Enrolled:        IsEnrolled(r),
		PrivateIP:       i.PrivateIP,
		PublicIP:        i.PublicIP,
		IPv6:            i.IPv6,
		PrivateDNS:      i.PrivateDNS,
		Tags:            i.Tags,
	}
}

// IsEnrolled reports whether the ledger knows an instance from an enrollment that went
// through.
func IsEnrolled(r ledger.Record) bool { return r.ConfirmedHostname != "" && !r.Retired }

// MaxLaunchSkew is how far EC2's clock may be ahead of the signer's.
const MaxLaunchSkew = 5 * time.Minute

// Age returns the time since the launch, and whether it is known. A launch time in the future
// counts as unknown: as a young machine, it would pass every bound.
func (f Facts) Age(now time.Time) (age time.Duration, known bool) {
	if f.LaunchTime.IsZero() || f.LaunchTime.After(now.Add(MaxLaunchSkew)) {
		return 0, false
	}
	return max(now.Sub(f.LaunchTime), 0), true
}

// Fields returns a pointer to each fact, by its name in JSON and in a policy's conditions. To add
// a fact, add it here, to Facts and to FactsOf.
func (f *Facts) Fields() map[string]any {
	return map[string]any{
		"account":            &f.Account,
		"account_name":       &f.AccountName,
		"account_path":       &f.AccountPath,
		"region":             &f.Region,
		"zone":               &f.Zone,
		"vpc":                &f.VPC,
		"subnet":             &f.Subnet,
		"instance_id":        &f.InstanceID,
		"instance_profile":   &f.InstanceProfile,
		"image":              &f.Image,
		"image_owner":        &f.ImageOwner,
		"image_owner_member": &f.ImageOwnerMember,
		"image_tags":         &f.ImageTags,
		"launch_time":        &f.LaunchTime,
		"enrolled":           &f.Enrolled,
		"private_ip":         &f.PrivateIP,
		"public_ip":          &f.PublicIP,
		"ipv6":               &f.IPv6,
		"private_dns":        &f.PrivateDNS,
		"tags":               &f.Tags,
	}
}

const maxFactsBytes = 256 << 10

// ParseFacts reads an instance's facts from a JSON object, to try a policy without AWS. Keys
// are the fields' names in snake case (instance_id, launch_time in the form of RFC 3339, tags
// as an object); account, region and instance_id are required. An unknown, repeated or null
// key is an error with its line: if a fact silently went missing, the trial would give another
// result than the signer.
func ParseFacts(data []byte) (Facts, error) {
	if len(data) > maxFactsBytes {
		return Facts{}, fmt.Errorf("facts: %d bytes, more than %d", len(data), maxFactsBytes)
	}
	if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
		return Facts{}, errors.New("facts: the file is not text in UTF-8")
	}
	var f Facts
	d := json.NewDecoder(bytes.NewReader(data))
	err := f.read(d)
	if err == nil {
		err = atEnd(d)
	}
	if err != nil {
		line := 1 + bytes.Count(data[:d.InputOffset()], []byte("\n"))
		// cut, because encoding/json repeats values of any length
		return Facts{}, fmt.Errorf("facts: line %d: %.400s", line, err.Error())
	}
	if err := f.check(); err != nil {
		return Facts{}, fmt.Errorf("facts: %w", err)
	}
	return f, nil
}

// check finds what no answer of EC2 could be.
func (f *Facts) check() error {
	for _, required := range []struct{ name, value string }{
		{"account", string(f.Account)}, {"region", string(f.Region)}, {"instance_id", string(f.InstanceID)},
	} {
		if required.value == "" {
			return fmt.Errorf("%s is missing; account, region and instance_id are required", required.name)
		}
	}
	for _, address := range []struct{ name, value string }{{"private_ip", f.PrivateIP}, {"public_ip", f.PublicIP}, {"ipv6", f.IPv6}} {
		if _, err := netip.ParseAddr(address.value); err != nil && address.value != "" {
			return fmt.Errorf("%q: %.100q is not an IP address", address.name, address.value)
		}
	}
	_, err := ec2ref.NewInstance(string(f.Account), string(f.Region), string(f.InstanceID))
	return err
}

func (f *Facts) read(d *json.Decoder) error {
	fields := f.Fields()
	return eachKey(d, func(key string) error {
		field, ok := fields[key]
		if !ok {
			return unknownFact(key, slices.Sorted(maps.Keys(fields)))
		}
		if tags, ok := field.(*map[string]string); ok {
			*tags = make(map[string]string)
			return eachKey(d, func(key string) error {
				var value string
				err := readValue(d, &value)
				(*tags)[key] = value
				return err
			})
		}
		return readValue(d, field)
	})
}

func unknownFact(name string, all []string) error {
	if meant := strictyaml.Nearest(name, all); meant != "" {
		return fmt.Errorf("unknown fact; did you mean %s?", meant)
	}
	return fmt.Errorf("unknown fact; the facts are %s", strings.Join(all, ", "))
}

// eachKey calls read for each key of the next JSON object. It compares keys letter by letter
// and refuses a repeated key; encoding/json does neither.
func eachKey(d *json.Decoder, read func(key string) error) error {
	if t, err := d.Token(); err != nil {
		return ended(err)
	} else if t != json.Delim('{') {
		return errors.New("want a JSON object")
	}
	seen := make(map[string]bool)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return ended(err)
		}
		key, _ := t.(string) // inside an object, a decoder allows nothing else here
		if seen[key] {
			return fmt.Errorf("%.100q appears twice", key)
		}
		seen[key] = true
		if err := read(key); err != nil {
			return fmt.Errorf("%.100q: %w", key, err)
		}
	}
	_, err := d.Token()
	return ended(err)
}

func readValue(d *json.Decoder, value any) error {
	var raw json.RawMessage
	if err := d.Decode(&raw); err != nil {
		return ended(err)
	}
	if bytes.Equal(raw, []byte("null")) {
		return errors.New("null is not a value; remove the key")
	}
	if err := json.Unmarshal(raw, value); err != nil {
		return fmt.Errorf("%.100s %s", raw, wanted(value))
	}
	return nil
}

// wanted says what a value must be, without the names of Go's types.
func wanted(value any) string {
	if reflect.TypeOf(value).Elem().Kind() == reflect.String {
		return "is not a text; put it in quotes"
	}
	switch value.(type) {
	case *time.Time:
		return "is not a time; write it as EC2 does, such as 2026-01-31T12:00:00Z"
	case *bool:
		return "is neither true nor false"
	}
	return "is not what this fact takes"
}

func atEnd(d *json.Decoder) error {
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("unexpected data after the JSON object")
	}
	return nil
}

// ended describes an end of the file in the middle of a value.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the file ends too early")
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		what, _, _ := strings.Cut(strings.TrimPrefix(syntax.Error(), "invalid character "), " looking for")
		return fmt.Errorf("this is not JSON: unexpected %s", what)
	}
	return err
}
