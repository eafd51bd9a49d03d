package docs

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// regexpCommand matches a command in a cell of a table.
var regexpCommand = regexp.MustCompile("`(sudo|ssh-keygen|tsh|tctl|aws|make|hallmark-signer) [^`]+`")

// Each path through troubleshooting.md ends at a command, and each alarm of the stack is on one.
func TestTroubleshooting(t *testing.T) {
	rows := 0
	page := readFile(t, "troubleshooting.md")
	for line := range strings.Lines(page) {
		line = strings.TrimSuffix(line, " |\n")
		if !strings.HasPrefix(line, "| ") || strings.HasSuffix(line, "| do this") {
			continue
		}
		rows++
		if last := line[strings.LastIndex(line, " | "):]; !regexpCommand.MatchString(last) {
			t.Errorf("no command: %s", line)
		}
	}
	if rows < 20 {
		t.Errorf("only %d rows were found", rows)
	}
	alarms := regexp.MustCompile(`(?m)^  (\w+Alarm):$`).FindAllStringSubmatch(readFile(t, filepath.Join("..", "template.yaml")), -1)
	if len(alarms) < 15 {
		t.Errorf("only %d alarms were found", len(alarms))
	}
	for _, m := range alarms {
		if !strings.Contains(page, "[`"+m[1]+"`](operations.md#"+strings.ToLower(m[1])+")") {
			t.Errorf("%s is missing", m[1])
		}
	}
}
