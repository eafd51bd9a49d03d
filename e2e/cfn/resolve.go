package cfn

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Body returns the stack as a template without conditions. It leaves out the named resources,
// resources of the given types, and the outputs that refer to either.
func (s *Stack) Body(leave func(name string, r Resource) bool) (string, error) {
	resources, outputs := make(map[string]any), make(map[string]any)
	for name, r := range s.Resources {
		if !leave(name, r) {
			resource := map[string]any{"Type": r.Type, "Properties": r.Properties}
			if r.DependsOn != nil {
				resource["DependsOn"] = r.DependsOn
			}
			resources[name] = resource
		}
	}
	for name, value := range s.Outputs {
		refers := false
		walkReferences(value, func(resource, _ string) {
			_, there := resources[resource]
			refers = refers || !there
		})
		if !refers {
			outputs[name] = map[string]any{"Value": value}
		}
	}
	body, err := json.Marshal(map[string]any{
		"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources, "Outputs": outputs,
	})
	return string(body), err
}

// walkReferences calls visit for each resource, and each attribute of a resource, that a value
// refers to.
func walkReferences(v any, visit func(resource, attribute string)) {
	_ = Resolve(v, func(resource, attribute string) string {
		visit(resource, attribute)
		return ""
	})
}

// Resolve replaces the references in a value. Name returns a resource's attribute, or the
// value of Ref if the attribute is empty.
func Resolve(v any, name func(resource, attribute string) string) any {
	switch f, argument := function(v); f {
	case "Ref":
		return name(fmt.Sprint(argument), "")
	case "Fn::GetAtt":
		if parts, ok := argument.([]any); ok && len(parts) == 2 {
			return name(fmt.Sprint(parts[0]), fmt.Sprint(parts[1]))
		}
		resource, attribute, _ := strings.Cut(fmt.Sprint(argument), ".")
		return name(resource, attribute)
	case "Fn::Join":
		pair, _ := argument.([]any)
		var texts []string
		parts, _ := Resolve(pair[1], name).([]any)
		for _, part := range parts {
			texts = append(texts, fmt.Sprint(part))
		}
		return strings.Join(texts, fmt.Sprint(pair[0]))
	case "Fn::Sub":
		own := make(map[string]any)
		if pair, ok := argument.([]any); ok {
			own, _ = Resolve(pair[1], name).(map[string]any)
			argument = pair[0]
		}
		return substitute(fmt.Sprint(argument), func(reference string) (string, bool) {
			if value, ok := own[reference]; ok {
				return fmt.Sprint(value), true
			}
			resource, attribute, _ := strings.Cut(reference, ".")
			return name(resource, attribute), true
		})
	}
	switch v := v.(type) {
	case map[string]any:
		resolved := make(map[string]any, len(v))
		for key, child := range v {
			resolved[key] = Resolve(child, name)
		}
		return resolved
	case []any:
		resolved := make([]any, len(v))
		for n, child := range v {
			resolved[n] = Resolve(child, name)
		}
		return resolved
	}
	return v
}
