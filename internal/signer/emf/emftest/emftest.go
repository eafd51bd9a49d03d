// Package emftest checks lines that should be metric records.
package emftest

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

// Metadata is a line's member _aws.
type Metadata struct {
	Timestamp         int64
	CloudWatchMetrics []struct {
		Namespace  string
		Dimensions [][]string
		Metrics    []struct{ Name, Unit string }
	}
}

// Check checks that a decoded line is a metric record of that time: every name in it refers to
// a member at the line's top level, text for a dimension and a number for a metric.
func Check(t *testing.T, line map[string]any, at time.Time) Metadata {
	t.Helper()
	var m Metadata
	data, err := json.Marshal(line["_aws"])
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	if m.Timestamp != at.UnixMilli() || len(m.CloudWatchMetrics) == 0 {
		t.Errorf("metadata %+v", m)
	}
	for _, directive := range m.CloudWatchMetrics {
		if directive.Namespace != "Hallmark" || len(directive.Metrics) == 0 {
			t.Errorf("directive %+v", directive)
		}
		for _, set := range directive.Dimensions {
			for _, name := range set {
				if _, ok := line[name].(string); !ok {
					t.Errorf("dimension %s is %v", name, line[name])
				}
			}
		}
		for _, metric := range directive.Metrics {
			if _, ok := line[metric.Name].(float64); !ok {
				t.Errorf("metric %s is %v", metric.Name, line[metric.Name])
			}
		}
	}
	return m
}
