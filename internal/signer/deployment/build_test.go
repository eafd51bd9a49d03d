package deployment

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment/deploymenttest"
)

// If NewSigner lacks something, the error names the setting.
func TestBuildRefusesTheEnvironment(t *testing.T) {
	for name, tt := range map[string]struct {
		environment map[string]string
		want        []string
	}{
		"inside Lambda without a table": {
			map[string]string{"AWS_LAMBDA_FUNCTION_NAME": "enroll"}, []string{"HALLMARK_LEDGER_TABLE", "pk", "enroll"},
		},
		"a policy parameter without a table": {
			map[string]string{"HALLMARK_POLICY_PARAMETER": "/hallmark/policy"}, []string{"HALLMARK_POLICY_PARAMETER", "HALLMARK_LEDGER_TABLE"},
		},
		"two policies": {
			map[string]string{"HALLMARK_POLICY_PARAMETER": "/hallmark/policy", "HALLMARK_LEDGER_TABLE": "ledger"},
			[]string{"policy_file", "HALLMARK_POLICY_PARAMETER"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := deploymenttest.Write(t, map[string]string{
				"deployment.yaml": deploymenttest.Minimal + "policy_file: policy.yaml", "identity.pem": "", "policy.yaml": anyPolicy,
			})
			t.Setenv("HALLMARK_DEPLOYMENT", path)
			for _, variable := range []string{"AWS_LAMBDA_FUNCTION_NAME", "HALLMARK_LEDGER_TABLE", "HALLMARK_POLICY_PARAMETER"} {
				t.Setenv(variable, tt.environment[variable])
			}
			t.Setenv("AWS_REGION", "us-west-2")
			_, _, err := NewSigner(t.Context(), slog.New(slog.DiscardHandler))
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v; want %q in it", err, want)
				}
			}
		})
	}
}

func TestARNs(t *testing.T) {
	for name, want := range map[string][2]string{
		"ledger": {"us-west-2", "ledger"},
		"arn:aws:dynamodb:eu-west-1:111122223333:table/ledger": {"eu-west-1", "ledger"},
	} {
		if got := [2]string{RegionOf(name, "us-west-2"), tableName(name)}; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestBuildSaysWhatIsWrong(t *testing.T) {
	t.Setenv("HALLMARK_DEPLOYMENT", "")
	t.Setenv("LAMBDA_TASK_ROOT", t.TempDir())
	_, _, err := NewSigner(t.Context(), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "HALLMARK_DEPLOYMENT") || !strings.Contains(err.Error(), "deployment.yaml") {
		t.Errorf("error %v; want the variable and the path", err)
	}
}
