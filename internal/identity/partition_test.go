package identity

import "testing"

func TestPartition(t *testing.T) {
	for region, want := range map[string][2]string{
		"us-west-2":      {"aws", "amazonaws.com"},
		"ap-southeast-7": {"aws", "amazonaws.com"},
		"mx-central-1":   {"aws", "amazonaws.com"},
		"hm-test-1":      {"aws", "amazonaws.com"},
		"cn-northwest-1": {"aws-cn", "amazonaws.com.cn"},
		"us-gov-east-1":  {"aws-us-gov", "amazonaws.com"},
		"eusc-de-east-1": {"aws-eusc", "amazonaws.eu"},
		"us-iso-east-1":  {"aws-iso", "c2s.ic.gov"},
		"us-isob-east-1": {"aws-iso-b", "sc2s.sgov.gov"},
		"eu-isoe-west-1": {"aws-iso-e", "cloud.adc-e.uk"},
		"us-isof-east-1": {"aws-iso-f", "csp.hci.ic.gov"},
	} {
		name, suffix, err := Partition(region)
		if got := [2]string{name, suffix}; err != nil || got != want {
			t.Errorf("Partition(%q) = %q, %v, want %q", region, got, err, want)
		}
	}
}

// TestPartitionRefuses holds names that would make sts.<region>.<suffix> some
// other host.
func TestPartitionRefuses(t *testing.T) {
	for _, region := range []string{
		"", "us", "us-west", "aws-global", "US-WEST-2", "us-west-2.evil.example", "evil.example/us-west-2",
		"evil.example#us-west-2", "us-west-2:443", "user@us-west-2", "us-west-2\n", "us_west_2", "us-west-2-",
		"us-wést-2", "us-" + "abcdefghijabcdefghijabcdefghij" + "-1",
	} {
		if name, suffix, err := Partition(region); err == nil {
			t.Errorf("Partition(%q) = %q, %q, want an error", region, name, suffix)
		}
	}
}
