package policy

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// The guide names every key, fact and variable, and its examples are valid.
func TestGuide(t *testing.T) {
	text, err := os.ReadFile("../../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	guide := string(text)
	for _, document := range []reflect.Type{
		reflect.TypeFor[fileDocument](), reflect.TypeFor[ruleDocument](), reflect.TypeFor[matchDocument](), reflect.TypeFor[tagNameDocument](),
	} {
		for i := range document.NumField() {
			if key := document.Field(i).Tag.Get("yaml"); key != "labels" && !strings.Contains(guide, "`"+key+"`") {
				t.Errorf("the guide lacks the key %s", key)
			}
		}
	}
	for i := range reflect.TypeFor[labelsDocument]().NumField() {
		if key := reflect.TypeFor[labelsDocument]().Field(i).Tag.Get("yaml"); !strings.Contains(guide, "`labels."+key+"`") {
			t.Errorf("the guide lacks the key labels.%s", key)
		}
	}
	for fact := range new(node.Facts).Fields() {
		if !strings.Contains(guide, `"`+fact+`":`) {
			t.Errorf("the guide's facts lack %s", fact)
		}
		if !strings.Contains(guide, "`"+fact+"`") {
			t.Errorf("the guide lacks the variable %s", fact)
		}
	}
	examples := 0
	for _, block := range regexp.MustCompile("(?s)```(yaml|json)\n(.*?)```").FindAllStringSubmatch(guide, -1) {
		switch {
		case block[1] == "json":
			_, err = node.ParseFacts([]byte(block[2]))
		case strings.HasPrefix(block[2], "version:"):
			_, err = Parse([]byte(block[2]), limits())
		default:
			continue
		}
		if examples++; err != nil {
			t.Errorf("%v in\n%s", err, block[2])
		}
	}
	if examples < 4 {
		t.Errorf("%d examples", examples)
	}
}

// Every fact is a variable in conditions.
func TestEveryFactIsAVariable(t *testing.T) {
	env, err := expressions()
	if err != nil {
		t.Fatal(err)
	}
	for fact := range new(node.Facts).Fields() {
		e, err := compile(env, fact+" == "+fact)
		if err != nil {
			t.Errorf("%s: %v", fact, err)
			continue
		}
		if ok, err := e.holds(facts(), clock()); err != nil || !ok {
			t.Errorf("%s is not bound: %v", fact, err)
		}
	}
}
