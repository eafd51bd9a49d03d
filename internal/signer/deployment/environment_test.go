package deployment

import (
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

func TestSSMEndpoint(t *testing.T) {
	tests := map[string]struct{ region, variable, want string }{
		"commercial": {"us-west-2", "", "https://ssm.us-west-2.amazonaws.com/"},
		"China":      {"cn-north-1", "", "https://ssm.cn-north-1.amazonaws.com.cn/"},
		"variable":   {"us-west-2", "https://ssm.example.com", "https://ssm.example.com"},
		"no region":  {"", "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("AWS_ENDPOINT_URL_SSM", tt.variable)
			got, err := endpoint(ec2ref.SSM, ec2ref.Region(tt.region))
			if (err != nil) != (tt.want == "") || err == nil && got != tt.want {
				t.Errorf("endpoint %q, error %v; want %q", got, err, tt.want)
			}
		})
	}
}
