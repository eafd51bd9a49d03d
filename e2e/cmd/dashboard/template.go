package main

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// template is what the drawing needs of template.yaml.
type template struct {
	widgets []widget
	alarms  []alarm
}

type widget struct {
	Type                string
	X, Y, Width, Height int
	Properties          struct {
		Title, Markdown, Query, Stat string
		Alarms                       []string
		Metrics                      [][]any
	}
}

// alarm is an alarm of the template. It watches the sum of the metrics.
type alarm struct {
	name, statistic, operator string
	metrics                   []string
	period                    time.Duration
	evaluated, needed         int
	threshold                 float64
	missingIsBad              bool
}

func readTemplate(text []byte) (template, error) {
	var read struct {
		Parameters map[string]struct {
			Default string `yaml:"Default"`
		} `yaml:"Parameters"`
		Resources yaml.Node `yaml:"Resources"`
	}
	if err := yaml.Unmarshal(text, &read); err != nil {
		return template{}, fmt.Errorf("read the template: %w", err)
	}
	var t template
	for i := 0; i < len(read.Resources.Content); i += 2 {
		name, resource := read.Resources.Content[i].Value, read.Resources.Content[i+1]
		properties := field(resource, "Properties")
		switch field(resource, "Type").Value {
		case "AWS::CloudWatch::Alarm":
			if field(resource, "Condition").Value == "ReadsOrganization" {
				continue // the week's stack has no organization
			}
			number := func(n *yaml.Node) float64 {
				text := n.Value
				if n.Tag == "!Ref" {
					text = read.Parameters[text].Default
				}
				value, _ := strconv.ParseFloat(text, 64) // a missing one is 0
				return value
			}
			t.alarms = append(t.alarms, newAlarm(name, properties, number))
		case "AWS::CloudWatch::Dashboard":
			body := strings.ReplaceAll(field(properties, "DashboardBody").Content[0].Value, "${MoreAlarms}", "")
			var d struct{ Widgets []widget }
			if err := json.Unmarshal([]byte(body), &d); err != nil {
				return template{}, fmt.Errorf("read the dashboard: %w", err)
			}
			t.widgets = d.Widgets
		}
	}
	return t, nil
}

// field returns the value of a mapping's key, or an empty node.
func field(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return new(yaml.Node)
}

func newAlarm(name string, properties *yaml.Node, number func(*yaml.Node) float64) alarm {
	a := alarm{
		name: name, statistic: field(properties, "Statistic").Value, operator: field(properties, "ComparisonOperator").Value,
		period: time.Duration(number(field(properties, "Period"))) * time.Second, evaluated: int(number(field(properties, "EvaluationPeriods"))),
		needed: int(number(field(properties, "DatapointsToAlarm"))), threshold: number(field(properties, "Threshold")),
		missingIsBad: field(properties, "TreatMissingData").Value == "breaching",
	}
	if metrics := field(properties, "Metrics"); len(metrics.Content) > 0 { // a sum of others
		for _, m := range metrics.Content {
			if stat := field(m, "MetricStat"); len(stat.Content) > 0 {
				a.metrics = append(a.metrics, metricOf(field(stat, "Metric")))
				a.period, a.statistic = time.Duration(number(field(stat, "Period")))*time.Second, field(stat, "Stat").Value
			}
		}
	} else {
		a.metrics = []string{metricOf(properties)}
	}
	if a.needed == 0 {
		a.needed = a.evaluated
	}
	return a
}

// metricOf returns the key of a metric that a part of the template names.
func metricOf(n *yaml.Node) string {
	var dimensions []string
	for _, d := range field(n, "Dimensions").Content {
		dimensions = append(dimensions, field(d, "Name").Value, "${"+field(d, "Value").Value+"}")
	}
	return metricKey(field(n, "Namespace").Value, field(n, "MetricName").Value, dimensions...)
}

// states returns whether the alarm is raised, for each hour of the week: at any time of that
// hour.
func (a alarm) states(s *store) []bool {
	n := int(days * 24 * time.Hour / a.period)
	bad := make([]bool, n)
	sums := make([]float64, n)
	for i := range sums {
		sums[i] = math.NaN()
	}
	for _, key := range a.metrics {
		for i, v := range s.periods(key, a.statistic, a.period, n) {
			if !math.IsNaN(v) {
				sums[i] = v + map[bool]float64{false: sums[i]}[math.IsNaN(sums[i])]
			}
		}
	}
	for i, v := range sums {
		switch {
		case math.IsNaN(v):
			bad[i] = a.missingIsBad
		case a.operator == "LessThanThreshold":
			bad[i] = v < a.threshold
		default:
			bad[i] = v >= a.threshold
		}
	}
	hours := make([]bool, days*24)
	for i := a.evaluated - 1; i < n; i++ {
		count := 0
		for _, b := range bad[i-a.evaluated+1 : i+1] {
			if b {
				count++
			}
		}
		if count >= a.needed {
			first := int(time.Duration(i) * a.period / time.Hour)
			last := max(first, int((time.Duration(i+1)*a.period-1)/time.Hour))
			for h := first; h <= last; h++ {
				hours[h] = true
			}
		}
	}
	return hours
}

// series is a line of a graph.
type series struct {
	label  string
	values []float64 // for each hour of the week
	right  bool      // it has its scale on the right
}

// graph returns the lines of a widget.
func (w widget) graph(s *store) []series {
	var list []series
	var before []string
	for _, entry := range w.Properties.Metrics {
		var words []string
		options := make(map[string]any)
		for _, e := range entry {
			switch e := e.(type) {
			case string:
				words = append(words, e)
			case map[string]any:
				options = e
			}
		}
		statistic := w.Properties.Stat
		if stat, ok := options["stat"].(string); ok {
			statistic = stat
		}
		if _, search := options["expression"]; search {
			for _, key := range s.with(metricKey("Hallmark", "requests", "signer", audience, "code", "")) {
				list = append(list, series{label: key[strings.LastIndex(key, "|")+1:], values: s.periods(key, "Sum", time.Hour, days*24)})
			}
			continue
		}
		if words[0] == "..." {
			words = append(slices.Clone(before[:len(before)-len(words)+1]), words[1:]...)
		}
		before = words
		label := words[1]
		if text, ok := options["label"].(string); ok {
			label = text
		} else if options["stat"] != nil {
			label += " " + statistic
		}
		list = append(list, series{
			label: label, values: s.periods(metricKey(words[0], words[1], words[2:]...), statistic, time.Hour, days*24), right: options["yAxis"] == "right",
		})
	}
	return list
}

// rows returns the newest lines that a query of the dashboard finds, as text.
func (w widget) rows(s *store, n int) [][]string {
	errorsOnly := strings.Contains(w.Properties.Query, `level = "ERROR"`)
	var rows [][]string
	for _, l := range slices.Backward(s.lines) {
		m := l.members
		at := l.at.Format("01-02 15:04")
		text := func(name string) string {
			if v, ok := m[name]; ok {
				return fmt.Sprint(v)
			}
			return ""
		}
		switch {
		case len(rows) == n:
			return rows
		case errorsOnly && m["level"] == "ERROR":
			rows = append(rows, []string{at, text("msg"), text("error")})
		case !errorsOnly && m["msg"] == "enroll" && m["code"] != "granted":
			rows = append(rows, []string{at, text("code"), text("instance"), text("error")})
		}
	}
	return rows
}
