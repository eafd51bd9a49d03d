package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/policy/live"
)

// audience is the dimension of all metrics, as the template writes it.
const audience = "${Audience}"

// point is a value of a metric.
type point struct {
	at    time.Time
	value float64
}

// store keeps metrics as CloudWatch does, and the lines that contained them.
type store struct {
	from    time.Time // earlier points are dropped
	metrics map[string][]point
	lines   []line
}

// line is a line of a function's log.
type line struct {
	at      time.Time
	members map[string]any
}

// metricKey names a metric: its namespace, its name, and its dimensions' names and values.
func metricKey(namespace, name string, dimensions ...string) string {
	return strings.Join(append([]string{namespace, name}, dimensions...), "|")
}

func (s *store) add(key string, at time.Time, value float64) {
	if s.metrics == nil {
		s.metrics = make(map[string][]point)
	}
	if !at.Before(s.from) {
		s.metrics[key] = append(s.metrics[key], point{at, value})
	}
}

// embedded is what the embedded metric format adds to a line.
type embedded struct {
	AWS struct {
		CloudWatchMetrics []struct {
			Namespace  string
			Dimensions [][]string
			Metrics    []struct{ Name string }
		}
	} `json:"_aws"`
}

// read takes the metrics out of log lines, as CloudWatch Logs does, and applies the
// template's metric filter for the policy.
func (s *store) read(log []byte, at time.Time) error {
	for text := range bytes.Lines(log) {
		var record embedded
		members := make(map[string]any)
		if err := json.Unmarshal(text, &record); err != nil {
			return fmt.Errorf("log line %s: %w", text, err)
		}
		if err := json.Unmarshal(text, &members); err != nil {
			return fmt.Errorf("log line %s: %w", text, err)
		}
		if !at.Before(s.from) {
			s.lines = append(s.lines, line{at, members})
		}
		if event := members["event"]; event == live.EventRejected || event == live.EventReset {
			s.add(metricKey("Hallmark/${AWS::StackName}", "policy_alarms"), at, 1)
		}
		for _, directive := range record.AWS.CloudWatchMetrics {
			for _, names := range directive.Dimensions {
				var dimensions []string
				for _, name := range names {
					dimensions = append(dimensions, name, fmt.Sprint(members[name]))
				}
				for _, m := range directive.Metrics {
					if m.Name == "record_ms" {
						// The ledger in memory takes no time, but it is read while EC2 is
						// called, so the part of that call that the read covers is random.
						continue
					}
					value, _ := members[m.Name].(float64)
					s.add(metricKey(directive.Namespace, m.Name, dimensions...), at, value)
				}
			}
		}
	}
	return nil
}

// with returns the keys of metrics with a prefix, sorted.
func (s *store) with(prefix string) []string {
	var keys []string
	for key := range s.metrics {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// periods returns a metric's statistic for each period from the start on. A period without
// points is NaN.
func (s *store) periods(key, statistic string, period time.Duration, n int) []float64 {
	values := make([][]float64, n)
	for _, p := range s.metrics[key] {
		if i := int(p.at.Sub(s.from) / period); i < n {
			values[i] = append(values[i], p.value)
		}
	}
	result := make([]float64, n)
	for i := range values {
		result[i] = statisticOf(statistic, values[i])
	}
	return result
}

func statisticOf(statistic string, values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	switch statistic {
	case "Sum":
		sum := 0.0
		for _, v := range values {
			sum += v
		}
		return sum
	case "Maximum":
		return slices.Max(values)
	case "Minimum":
		return slices.Min(values)
	case "p50":
		return percentile(values, 50)
	case "p90":
		return percentile(values, 90)
	case "p99":
		return percentile(values, 99)
	default:
		return math.NaN()
	}
}

func percentile(values []float64, percent int) float64 {
	slices.Sort(values)
	return values[min(len(values)-1, len(values)*percent/100)]
}
