package cfn

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var place = Place{StackName: "hallmark", Region: "us-west-2", Account: "111122223333"}

const shown = `
Transform: AWS::Serverless-2016-10-31
Parameters:
  Mode: {Type: String, Default: a}
  Members: {Type: CommaDelimitedList, Default: ""}
Rules:
  NoX:
    RuleCondition: !Equals [!Ref Mode, x]
    Assertions:
      - {Assert: !Not [!Contains [!Ref Members, ""]], AssertDescription: x needs members}
Conditions:
  IsA: !Equals [!Ref Mode, a]
  HasMembers: !Not [!Equals [!Join ["", !Ref Members], ""]]
  Both: !And [!Condition IsA, !Condition HasMembers]
Resources:
  One:
    Type: AWS::SQS::Queue
    Condition: IsA
    Properties:
      QueueName: !Sub ${AWS::StackName}-${Mode}-one
      Tags: [!If [HasMembers, {Key: members, Value: !Join ["+", !Ref Members]}, !Ref AWS::NoValue]]
      RedrivePolicy: !If [Both, !Sub "${Two}/${Two.Arn}/${Mode}", !Ref AWS::NoValue]
  Two:
    Type: AWS::SQS::Queue
    Properties:
      QueueName: !If [IsA, !Join ["-", [!Ref Mode, !GetAtt One.QueueName]], none]
Outputs:
  Of: {Condition: IsA, Value: !Sub [ "${X}${One}", {X: !Ref Mode} ]}
`

func expand(t *testing.T, parameters map[string]string) (*Stack, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "template.yaml")
	if err := os.WriteFile(path, []byte(shown), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Expand(t.Context(), path, place, parameters)
	if errors.Is(err, ErrNoTranslator) && os.Getenv("HALLMARK_TEST_STRICT") == "" {
		t.Skip(err)
	}
	return s, err
}

func TestExpand(t *testing.T) {
	s, err := expand(t, map[string]string{"Members": "1,2"})
	if err != nil {
		t.Fatal(err)
	}
	name := func(resource, attribute string) string { return "<" + resource + "." + attribute + ">" }
	for _, check := range []struct {
		what      string
		got, want any
	}{
		{"One", Resolve(s.Resources["One"].Properties, name), map[string]any{
			"QueueName": "hallmark-a-one", "Tags": []any{map[string]any{"Key": "members", "Value": "1+2"}},
			"RedrivePolicy": "<Two.>/<Two.Arn>/a",
		}},
		{"Two", Resolve(s.Resources["Two"].Properties, name), map[string]any{"QueueName": "a-<One.QueueName>"}},
		{"the output", Resolve(s.Outputs["Of"], name), "a<One.>"},
	} {
		if !reflect.DeepEqual(check.got, check.want) {
			t.Errorf("%s is %v, want %v", check.what, check.got, check.want)
		}
	}
	body, err := s.Body(func(name string, _ Resource) bool { return name == "One" })
	if err != nil {
		t.Fatal(err)
	}
	var left struct{ Resources, Outputs map[string]any }
	if err := json.Unmarshal([]byte(body), &left); err != nil {
		t.Fatal(err)
	}
	if got := slices.Collect(maps.Keys(left.Resources)); !slices.Equal(got, []string{"Two"}) || len(left.Outputs) != 0 {
		t.Errorf("left are %v and %v, want Two and no output", got, left.Outputs)
	}
}

func TestExpandWithoutTheCondition(t *testing.T) {
	s, err := expand(t, map[string]string{"Mode": "b"})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Resources) != 1 || len(s.Outputs) != 0 || s.Resources["Two"].Properties["QueueName"] != "none" {
		t.Errorf("got %v, %v", s.Resources, s.Outputs)
	}
}

func TestExpandRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		parameters map[string]string
		says       string
	}{
		"what breaks a rule":   {map[string]string{"Mode": "x"}, "x needs members"},
		"an unknown parameter": {map[string]string{"Mood": "a"}, "Mood"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := expand(t, test.parameters); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want %q in it", err, test.says)
			}
		})
	}
}

func TestTransformNamesTheFault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "template.yaml")
	if err := os.WriteFile(path, []byte("Transform: AWS::Serverless-2016-10-31\nResources: {F: {Type: AWS::Serverless::Function, Properties: {Handler: [1]}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Transform(t.Context(), path, nil)
	if errors.Is(err, ErrNoTranslator) && os.Getenv("HALLMARK_TEST_STRICT") == "" {
		t.Skip(err)
	}
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
}
