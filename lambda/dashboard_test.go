package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// alarms returns the template's alarms by name.
func alarms(t *testing.T) map[string]*yaml.Node {
	t.Helper()
	found := make(map[string]*yaml.Node)
	resources := field(readTemplate(t, "template.yaml"), "Resources")
	for i := 0; i < len(resources.Content); i += 2 {
		if resource := resources.Content[i+1]; field(resource, "Type").Value == "AWS::CloudWatch::Alarm" {
			found[resources.Content[i].Value] = resource
		}
	}
	if len(found) < 16 {
		t.Fatalf("template.yaml has %d alarms", len(found))
	}
	return found
}

// Each alarm links to its section in operations.md, and operations.md explains no other alarm.
func TestAlarmsLinkToTheirSection(t *testing.T) {
	const document = "https://github.com/hallmark-ssh/hallmark/blob/main/docs/operations.md#"
	text, err := os.ReadFile(filepath.Join("..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	explained := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^### (\w+Alarm)$`).FindAllStringSubmatch(string(text), -1) {
		explained[m[1]] = true
	}
	for name, alarm := range alarms(t) {
		description := field(alarm, "Properties", "AlarmDescription").Value
		if link := document + strings.ToLower(name); !strings.HasSuffix(description, " "+link) {
			t.Errorf("%s is described as %q, without %s", name, description, link)
		}
		if len(description) > 1024 {
			t.Errorf("%s is described with %d characters; CloudWatch takes 1,024", name, len(description))
		}
		if !explained[name] {
			t.Errorf("docs/operations.md has no section %s", name)
		}
		delete(explained, name)
	}
	for name := range explained {
		t.Errorf("docs/operations.md explains %s, which template.yaml does not have", name)
	}
}

// dashboardBody is the dashboard's text, with the alarms that do not depend on a condition.
func dashboardBody(t *testing.T) string {
	t.Helper()
	sub := field(readTemplate(t, "template.yaml"), "Resources", "Dashboard", "Properties", "DashboardBody")
	if sub.Kind != yaml.SequenceNode || len(sub.Content) != 2 {
		t.Fatalf("the dashboard's body is %s", flow(sub))
	}
	return strings.ReplaceAll(sub.Content[0].Value, "${MoreAlarms}", "")
}

type widget struct {
	Type                string
	X, Y, Width, Height int
	Properties          struct {
		Title, Markdown, Query string
		Alarms                 []string
		Metrics                [][]any
	}
}

func dashboard(t *testing.T) []widget {
	t.Helper()
	var body struct{ Widgets []widget }
	if err := json.Unmarshal([]byte(dashboardBody(t)), &body); err != nil {
		t.Fatalf("the dashboard is not JSON: %v", err)
	}
	return body.Widgets
}

func TestDashboardShowsEveryAlarm(t *testing.T) {
	var shown []string
	for _, w := range dashboard(t) {
		shown = append(shown, w.Properties.Alarms...)
	}
	more := flow(field(readTemplate(t, "template.yaml"), "Resources", "Dashboard", "Properties", "DashboardBody").Content[1])
	for name, alarm := range alarms(t) {
		condition := field(alarm, "Condition").Value
		switch {
		case condition == "" && !slices.Contains(shown, "${"+name+".Arn}"):
			t.Errorf("the dashboard does not show %s", name)
		case condition != "" && !strings.Contains(more, `!If [`+condition+`, !Sub ,"${`+name+`.Arn}", ]`):
			t.Errorf("the dashboard does not show %s if there is one:\n%s", name, more)
		}
	}
}

func TestDashboardFits(t *testing.T) {
	kinds := make(map[string]int)
	taken := make(map[[2]int]string)
	for _, w := range dashboard(t) {
		kinds[w.Type]++
		if w.X < 0 || w.X+w.Width > 24 {
			t.Errorf("%s %q is outside the dashboard's 24 columns", w.Type, w.Properties.Title)
		}
		for x := w.X; x < w.X+w.Width; x++ {
			for y := w.Y; y < w.Y+w.Height; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%q covers %q", w.Properties.Title, other)
				}
				taken[[2]int{x, y}] = w.Type + " " + w.Properties.Title
			}
		}
		if w.Type == "log" && !strings.HasPrefix(w.Properties.Query, "SOURCE '${") {
			t.Errorf("query %q names no log group", w.Properties.Query)
		}
	}
	for _, kind := range []string{"text", "alarm", "metric", "log"} {
		if kinds[kind] == 0 {
			t.Errorf("the dashboard has no widget of type %s", kind)
		}
	}
	for _, metric := range []string{"sweep_refused", "login_left_s"} {
		if !strings.Contains(dashboardBody(t), `["Hallmark","`+metric+`",`) {
			t.Errorf("the dashboard does not show %s", metric)
		}
	}
}
