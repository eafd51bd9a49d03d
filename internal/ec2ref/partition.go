package ec2ref

import (
	"fmt"
	"slices"
	"strings"
)

// Partition is a set of regions with separate accounts, as ARNs spell it.
type Partition string

// partitions maps the beginning of a region's name to its partition, the DNS suffix of its
// endpoints (AWS General Reference, "Service endpoints"; the same values as partitions.json of
// the AWS SDKs), and the region of the only endpoint of AWS Organizations, if it is known
// (https://docs.aws.amazon.com/general/latest/gr/ao.html). The last entry matches every region:
// AWS adds commercial regions without notice, and a wrong guess leads to a host that does not
// exist.
//
// To add a partition, add a line.
func partitions() []partition {
	return []partition{
		{"cn-", "aws-cn", "amazonaws.com.cn", "cn-northwest-1"},
		{"us-gov-", govCloud, "amazonaws.com", "us-gov-west-1"},
		{"eusc-", "aws-eusc", "amazonaws.eu", ""},
		{"us-iso-", "aws-iso", "c2s.ic.gov", ""},
		{"us-isob-", "aws-iso-b", "sc2s.sgov.gov", ""},
		{"eu-isoe-", "aws-iso-e", "cloud.adc-e.uk", ""},
		{"us-isof-", "aws-iso-f", "csp.hci.ic.gov", ""},
		{"", "aws", "amazonaws.com", "us-east-1"},
	}
}

const govCloud Partition = "aws-us-gov"

type partition struct {
	regionPrefix string
	name         Partition
	dnsSuffix    string
	// organizations is empty if the endpoint is not known.
	organizations Region
}

// partition parses the region again, so that only a region's name becomes part of a host name
// or an ARN, no matter how the Region was created.
func (r Region) partition() (partition, error) {
	if _, err := ParseRegion(string(r)); err != nil {
		return partition{}, err
	}
	all := partitions()
	n := slices.IndexFunc(all, func(p partition) bool { return strings.HasPrefix(string(r), p.regionPrefix) })
	return all[n], nil
}

// DNSSuffixes returns the domain of each partition's endpoints, each once.
func DNSSuffixes() []string {
	var suffixes []string
	for _, p := range partitions() {
		suffixes = append(suffixes, p.dnsSuffix)
	}
	slices.Sort(suffixes)
	return slices.Compact(suffixes)
}

// Partition returns the partition of the region. It fails for a malformed region.
func (r Region) Partition() (Partition, error) {
	p, err := r.partition()
	return p.name, err
}

// Service is an AWS service, by the first label of its endpoints.
type Service string

// The services that Hallmark calls by name.
const (
	EC2           Service = "ec2"
	Lambda        Service = "lambda"
	Organizations Service = "organizations"
	SSM           Service = "ssm"
	STS           Service = "sts"
)

// Host returns the name of the service's endpoint in the region. It fails for a
// malformed region.
func (s Service) Host(r Region) (string, error) {
	p, err := r.partition()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s.%s.%s", s, r, p.dnsSuffix), nil
}

// OrganizationsRegion returns the region of the only endpoint of AWS Organizations in a
// region's partition. It fails for a partition whose endpoint is not known.
func OrganizationsRegion(r Region) (Region, error) {
	p, err := r.partition()
	if err == nil && p.organizations == "" {
		err = fmt.Errorf("the endpoint of AWS Organizations in partition %s is not known; list the accounts instead", p.name)
	}
	return p.organizations, err
}

// STSHost returns the name of STS's endpoint in the region, or of its FIPS endpoint
// (https://docs.aws.amazon.com/general/latest/gr/sts.html). It fails for a malformed
// region, and with fips for a region that has no FIPS endpoint.
func STSHost(r Region, fips bool) (string, error) {
	p, err := r.partition()
	switch {
	case err != nil:
		return "", err
	case !fips, p.name == govCloud: // there, the ordinary endpoints are FIPS endpoints
		return STS.Host(r)
	case !slices.Contains([]Region{"us-east-1", "us-east-2", "us-west-1", "us-west-2"}, r):
		return "", fmt.Errorf("STS has no FIPS endpoint in %s; us-east-1, us-east-2, us-west-1, us-west-2 and us-gov-* have one", r)
	}
	return Service("sts-fips").Host(r)
}
