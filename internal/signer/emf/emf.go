// Package emf writes metrics into log lines: CloudWatch Logs extracts metrics from a JSON line
// in its embedded metric format, without another call or permission
// (https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html).
package emf

import (
	"log/slog"
	"time"
)

// namespace is where CloudWatch keeps the metrics.
const namespace = "Hallmark"

// Set is a group of metrics with the same dimensions. CloudWatch charges for each combination
// of a metric and a dimension value.
type Set struct {
	dimensions []string
	metrics    []metric
	values     []slog.Attr
}

// By returns an empty set. Its dimensions are the line's members with these names, which must
// be text.
func By(dimensions ...string) *Set { return &Set{dimensions: dimensions} }

// Count adds a number of things. Add it even if it is 0, so that averages are rates.
func (s *Set) Count(name string, n int) { s.add(name, "Count", int64(n)) }

// Happened adds 1 if something happened, and otherwise 0.
func (s *Set) Happened(name string, happened bool) {
	n := 0
	if happened {
		n = 1
	}
	s.Count(name, n)
}

// Milliseconds adds how long something took.
func (s *Set) Milliseconds(name string, d time.Duration) {
	s.add(name, "Milliseconds", d.Milliseconds())
}

// Seconds adds how long something will take.
func (s *Set) Seconds(name string, d time.Duration) { s.add(name, "Seconds", int64(d.Seconds())) }

func (s *Set) add(name, unit string, value int64) {
	s.metrics = append(s.metrics, metric{name, unit})
	s.values = append(s.values, slog.Int64(name, value))
}

// Attrs returns the members that turn a line with this time into a metric record. The
// dimensions are other members of the line.
func Attrs(at time.Time, sets ...*Set) []slog.Attr {
	var attrs []slog.Attr
	record := metadata{Timestamp: at.UnixMilli()}
	for _, s := range sets {
		attrs = append(attrs, s.values...)
		record.CloudWatchMetrics = append(record.CloudWatchMetrics, directive{namespace, [][]string{s.dimensions}, s.metrics})
	}
	return append(attrs, slog.Any("_aws", record))
}

// metadata names the line's members that are metrics and those that are dimensions. Its fields
// have the specification's names.
type metadata struct {
	Timestamp         int64 // milliseconds since 1970
	CloudWatchMetrics []directive
}

type directive struct {
	Namespace  string
	Dimensions [][]string
	Metrics    []metric
}

type metric struct {
	Name string
	Unit string
}
