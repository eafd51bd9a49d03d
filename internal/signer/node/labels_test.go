package node

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// People grant access by labels, so the reference lists each one that the signer sets.
func TestLabelsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	var f Facts // with all text that EC2 may show
	for _, value := range reflect.ValueOf(&f).Elem().Fields() {
		if value.Kind() == reflect.String {
			value.SetString("x")
		}
	}
	labels := Labels(f, Cluster{Signer: "x"}, "x", AddedLabels())
	labels[HealthLabel] = "x"
	for key := range labels {
		if !strings.Contains(string(text), "`"+key+"`") {
			t.Errorf("docs/reference.md does not list %s", key)
		}
	}
	if len(labels) < 11 {
		t.Errorf("%d labels: %v", len(labels), labels)
	}
}
