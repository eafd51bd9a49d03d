package main

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
)

// readingFunc is a reading of an organization.
type readingFunc func(ctx context.Context) (organization.Report, error)

func (f readingFunc) Refresh(ctx context.Context) (organization.Report, error) { return f(ctx) }

func TestReadTheOrganization(t *testing.T) {
	var deadline time.Time
	var err error
	h := fleetHandler{log: slog.New(slog.DiscardHandler), organization: readingFunc(func(ctx context.Context) (organization.Report, error) {
		deadline, _ = ctx.Deadline()
		return organization.Report{Accounts: 3}, err
	})}
	// The input of the stack's rule.
	input := field(readTemplate(t, "template.yaml"), "Resources", "OrganizationRule", "Properties", "Targets").Content[0]
	event := []byte(field(input, "Input").Value)
	answer, failure := h.Invoke(t.Context(), event)
	if failure != nil || string(answer) != `{"Accounts":3}` {
		t.Errorf("answer %s, error %v", answer, failure)
	}
	if left := time.Until(deadline); left > readingTime {
		t.Errorf("a reading may take %s, more than %s", left, readingTime)
	}
	// The next reading makes up for a failure. Lambda must not run this one again.
	err = errors.New("denied")
	if answer, failure = h.Invoke(t.Context(), event); failure != nil || !strings.Contains(string(answer), "denied") {
		t.Errorf("answer %s, error %v", answer, failure)
	}
	h.organization = nil
	if answer, failure = h.Invoke(t.Context(), event); failure != nil || !strings.Contains(string(answer), "names no organization") {
		t.Errorf("answer %s, error %v", answer, failure)
	}
}

// The functions may assume the roles of the organization's accounts, and no role elsewhere.
func TestRolesOfAnOrganization(t *testing.T) {
	for _, role := range []string{"EnrollRole", "FleetRole"} {
		found := 0
		walk(field(readTemplate(t, "template.yaml"), "Resources", role), "", func(_ string, n *yaml.Node) {
			resource := flow(field(n, "Resource"))
			if field(n, "Action").Value != "sts:AssumeRole" || !strings.Contains(resource, "Organization") {
				return
			}
			found++
			if got := flow(field(n, "Condition", "StringEquals", "aws:ResourceOrgID")); got != "!Ref OrganizationId" {
				t.Errorf("%s may assume %s with aws:ResourceOrgID %q", role, resource, got)
			}
		})
		if want := map[string]int{"EnrollRole": 1, "FleetRole": 2}[role]; found != want {
			t.Errorf("%s has %d statements about roles of the organization, want %d", role, found, want)
		}
	}
	// Whatever the name's pattern, it begins with something.
	pattern := regexp.MustCompile(field(readTemplate(t, "template.yaml"), "Parameters", "OrganizationRoleName", "AllowedPattern").Value)
	for name, want := range map[string]bool{
		"": true, "hallmark-member": true, "hallmark/member-*": true, "member-*-x": true, "*": false, "*member": false, "a*b*": false,
	} {
		if pattern.MatchString(name) != want {
			t.Errorf("name %q: accepted %v", name, !want)
		}
	}
}

// The schedule, the time of a reading and what an enrollment may remember add up to less
// than the promised five minutes.
func TestAnAccountCanEnrollWithinFiveMinutes(t *testing.T) {
	schedule := field(readTemplate(t, "template.yaml"), "Resources", "OrganizationRule", "Properties", "ScheduleExpression").Value
	minutes, ok := strings.CutPrefix(schedule, "rate(")
	every, err := time.ParseDuration(strings.TrimSuffix(minutes, " minutes)") + "m")
	if err != nil || !ok {
		t.Fatalf("schedule %s: %v", schedule, err)
	}
	if readingTime >= every {
		t.Errorf("a reading may take %s, and the next begins after %s", readingTime, every)
	}
	if longest := every + readingTime + organization.Fresh; longest > 5*time.Minute {
		t.Errorf("a new account may wait %s", longest)
	}
}
