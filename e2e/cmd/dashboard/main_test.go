package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The picture in docs/ is the one that template.yaml and the code of today give, and shows
// what happens in the week.
func TestPicture(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	templateFile := filepath.Join(root, "template.yaml")
	got, s, err := picture(t.Context(), templateFile)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(root, "docs", "dashboard.svg"))
	if err != nil || got != string(want) {
		t.Errorf("docs/dashboard.svg is out of date (error %v): run 'go run ./e2e/cmd/dashboard docs/dashboard.svg' and look at it", err)
	}
	checkEnrollments(t, s)
	text, err := os.ReadFile(templateFile)
	if err != nil {
		t.Fatal(err)
	}
	read, err := readTemplate(text)
	if err != nil {
		t.Fatal(err)
	}
	checkAlarms(t, read.alarms, s)
}

func checkEnrollments(t *testing.T, s *store) {
	t.Helper()
	hours := func(name string) []float64 {
		return s.periods(metricKey("Hallmark", name, "signer", audience), "Sum", time.Hour, days*24)
	}
	if storm := hours("enrollments")[int(stormStart/time.Hour)]; storm < stormSize {
		t.Errorf("%v machines enroll in the storm, want %d", storm, stormSize)
	}
	renewals := 0.0
	for _, n := range hours("renewals") {
		if n > 0 { // an hour without requests is NaN
			renewals += n
		}
	}
	// Each renews three times a week, about.
	if renewals < 2*fleetSize || renewals > 4*fleetSize {
		t.Errorf("%v renewals of %d machines", renewals, fleetSize)
	}
	for hour, n := range hours("failures") {
		inOutage := time.Duration(hour)*time.Hour >= outageStart && time.Duration(hour)*time.Hour < outageEnd
		if n > 0 != inOutage {
			t.Errorf("hour %d: %v failures; Teleport is down: %t", hour, n, inOutage)
		}
	}
}

// checkAlarms compares when each alarm is raised with what happens in the week.
func checkAlarms(t *testing.T, list []alarm, s *store) {
	t.Helper()
	spans := map[string][2]time.Duration{ // the hours within which the alarm is raised
		"EnrollFailuresAlarm": {outageStart, outageEnd},
		"EventsLateAlarm":     {outageStart, outageEnd + time.Hour},
		"FailedEventsAlarm":   {outageStart, outageEnd + 2*time.Hour},
		"SweepFailedAlarm":    {outageStart, outageEnd + 2*time.Hour},
		"PolicyAlarm":         {broken, days * 24 * time.Hour},
	}
	for _, a := range list {
		span, expected := spans[a.name]
		raised := 0
		for hour, state := range a.states(s) {
			if !state {
				continue
			}
			raised++
			if at := time.Duration(hour) * time.Hour; at < span[0] || at >= span[1] {
				t.Errorf("%s is raised after %s", a.name, at)
			}
		}
		if expected != (raised > 0) {
			t.Errorf("%s is raised in %d hours; expected: %t", a.name, raised, expected)
		}
	}
}
