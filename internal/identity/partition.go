package identity

import (
	"fmt"
	"regexp"
	"strings"
)

// maxRegionName bounds a region's name, which becomes part of a host name.
const maxRegionName = 32

// regionName matches names such as us-west-2 and us-gov-east-1: nothing that
// could end a host name early or add a label to it.
var regionName = regexp.MustCompile(`^[a-z]{2,}(-[a-z]+)+-[0-9]{1,2}$`)

// Partition returns the AWS partition that a region belongs to, as ARNs spell
// it, and the DNS suffix of the partition's endpoints. The table is fixed, so
// that no caller can choose the host that confirms him (AWS General Reference,
// "Service endpoints"; the same values as partitions.json of the AWS SDKs).
//
// A region of an unknown prefix counts as commercial: AWS adds those without
// notice, and a wrong guess ends at a host that does not exist.
func Partition(region string) (name, dnsSuffix string, err error) {
	if len(region) > maxRegionName || !regionName.MatchString(region) {
		return "", "", fmt.Errorf("%.40q is not the name of an AWS region", region)
	}
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn", "amazonaws.com.cn", nil
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov", "amazonaws.com", nil
	case strings.HasPrefix(region, "eusc-"):
		return "aws-eusc", "amazonaws.eu", nil
	case strings.HasPrefix(region, "us-iso-"):
		return "aws-iso", "c2s.ic.gov", nil
	case strings.HasPrefix(region, "us-isob-"):
		return "aws-iso-b", "sc2s.sgov.gov", nil
	case strings.HasPrefix(region, "eu-isoe-"):
		return "aws-iso-e", "cloud.adc-e.uk", nil
	case strings.HasPrefix(region, "us-isof-"):
		return "aws-iso-f", "csp.hci.ic.gov", nil
	}
	return "aws", "amazonaws.com", nil
}
