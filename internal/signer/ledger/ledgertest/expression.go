package ledgertest

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// expression evaluates conditions on an item: AND, OR and parentheses, with the comparisons
// and functions that the ledger uses. Others are errors.
type expression struct {
	item, values map[string]types.AttributeValue
	names        map[string]string // that stand for attributes
}

// attribute returns the value of an attribute, or nil.
func (e expression) attribute(name string) types.AttributeValue {
	if full, stands := e.names[name]; stands {
		name = full
	}
	return e.item[name]
}

func (e expression) holds(condition string) (bool, error) {
	for _, operator := range []string{" OR ", " AND "} { // OR binds weaker
		if left, right, found := cut(condition, operator); found {
			return e.join(operator, left, right)
		}
	}
	if inner, found := strings.CutPrefix(condition, "("); found {
		return e.holds(strings.TrimSuffix(inner, ")"))
	}
	if arguments, found := strings.CutPrefix(condition, "attribute_not_exists("); found {
		_, there := e.item[strings.TrimSuffix(arguments, ")")]
		return !there, nil
	}
	if arguments, found := strings.CutPrefix(condition, "begins_with("); found {
		name, value, _ := strings.Cut(strings.TrimSuffix(arguments, ")"), ", ")
		text, isText := e.item[name].(*types.AttributeValueMemberS)
		prefix, known := e.values[value].(*types.AttributeValueMemberS)
		if !known {
			return false, fmt.Errorf("condition %q is beyond this table", condition)
		}
		return isText && strings.HasPrefix(text.Value, prefix.Value), nil
	}
	return e.compare(condition)
}

// cut splits a condition at the first operator outside parentheses.
func cut(condition, operator string) (left, right string, found bool) {
	depth := 0
	for n, r := range condition {
		switch r {
		case '(':
			depth++
		case ')':
			depth--
		}
		if depth == 0 && strings.HasPrefix(condition[n:], operator) {
			return condition[:n], condition[n+len(operator):], true
		}
	}
	return "", "", false
}

// join evaluates both sides, because the table must support both.
func (e expression) join(operator, left, right string) (bool, error) {
	l, err := e.holds(left)
	if err != nil {
		return false, err
	}
	r, err := e.holds(right)
	if operator == " OR " {
		return l || r, err
	}
	return l && r, err
}

// compare evaluates "name = :value", and "<" and ">" of numbers. A missing attribute compares
// with nothing.
func (e expression) compare(condition string) (bool, error) {
	parts := strings.Split(condition, " ")
	if len(parts) != 3 {
		return false, fmt.Errorf("condition %q is beyond this table", condition)
	}
	want, known := e.values[parts[2]]
	if !known {
		return false, fmt.Errorf("condition %q has a value that is not given", condition)
	}
	if parts[1] == "=" {
		return reflect.DeepEqual(e.attribute(parts[0]), want), nil
	}
	a, isNumber := e.attribute(parts[0]).(*types.AttributeValueMemberN)
	b, isNumberToo := want.(*types.AttributeValueMemberN)
	if !isNumber || !isNumberToo {
		return false, nil
	}
	x, err := strconv.ParseInt(a.Value, 10, 64)
	if err != nil {
		return false, err
	}
	y, err := strconv.ParseInt(b.Value, 10, 64)
	switch parts[1] {
	case "<":
		return x < y, err
	case ">":
		return x > y, err
	}
	return false, fmt.Errorf("condition %q is beyond this table", condition)
}
