package signer

import (
	"log/slog"
	"time"
)

// namespace is where CloudWatch keeps the metrics.
const namespace = "Hallmark"

// emf is what makes a log line a record of CloudWatch's embedded metric format: it
// names the members of the line that are metrics, and those that are dimensions.
// (https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html)
type emf struct {
	Timestamp         int64 // milliseconds since 1970
	CloudWatchMetrics []emfDirective
}

type emfDirective struct {
	Namespace  string
	Dimensions [][]string
	Metrics    []emfMetric
}

type emfMetric struct {
	Name string
	Unit string
}

// metrics returns the members that make the line a metric record. Counts are there
// when they are 0 too, so that their averages are rates. Codes are a dimension of
// one metric alone: each pair of a metric and a code costs.
func (a *audit) metrics(end time.Time, status int, err error) []slog.Attr {
	var f fields
	granted := err == nil
	again := a.facts != nil && a.facts.Enrolled
	bySigner := emfDirective{Namespace: namespace, Dimensions: [][]string{{"signer"}}}
	count := func(name string, happened bool) {
		n := 0
		if happened {
			n = 1
		}
		f.add(name, n)
		bySigner.Metrics = append(bySigner.Metrics, emfMetric{name, "Count"})
	}
	f.add("signer", a.signer)
	count("enrollments", granted && !again)
	count("renewals", granted && again)
	count("refusals", !granted && status < 500)
	count("failures", !granted && status >= 500)
	count("key_conflicts", isAlarm(err))
	f.add("total_ms", end.Sub(a.start).Milliseconds())
	bySigner.Metrics = append(bySigner.Metrics, emfMetric{"total_ms", "Milliseconds"})

	byCode := emfDirective{
		Namespace: namespace, Dimensions: [][]string{{"signer", "code"}}, Metrics: []emfMetric{{"requests", "Count"}},
	}
	f.add("requests", 1)
	f.add("_aws", emf{Timestamp: end.UnixMilli(), CloudWatchMetrics: []emfDirective{bySigner, byCode}})
	return f
}
