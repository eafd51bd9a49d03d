package provisioner

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/packer-plugin-sdk/didyoumean"
	"github.com/hashicorp/packer-plugin-sdk/template/config"
	"github.com/hashicorp/packer-plugin-sdk/template/interpolate"
	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

// decode reads what Packer passes to Prepare, and returns what it cannot read. A field that it
// cannot read counts as not known yet.
//
// Packer checks the names and types in a block, but not those in its "override" and in JSON
// templates, and not whether an entry of a list is null. The SDK would stop at the first
// mistake, and describe it in terms of Go.
func (c *Config) decode(raws ...any) []error {
	data, raws := config.DetectContextData(raws...)
	var parts []any
	for _, raw := range raws {
		part, err := asMap(raw)
		if err != nil {
			return []error{err}
		}
		parts = append(parts, part)
	}
	ctx, err := config.DetectContext(parts...)
	if err != nil {
		return []error{fmt.Errorf("read what Packer says about the build: %w", err)}
	}
	ctx.Data = data
	c.ctx = *ctx
	r := reader{spec: c.FlatMapstructure().HCL2Spec(), ctx: ctx, values: map[string]any{}}
	for _, part := range parts {
		r.read(part.(map[string]any))
	}
	if err := config.Decode(c, &config.DecodeOpts{}, r.values); err != nil {
		r.problems = append(r.problems, fmt.Errorf("read the block: %w", err))
	}
	return r.problems
}

// asMap returns the values of a block, by name: Packer passes a cty.Value or a map.
func asMap(raw any) (map[string]any, error) {
	values := map[string]any{}
	if block, ok := raw.(cty.Value); ok {
		text, err := ctyjson.SimpleJSONValue{Value: block}.MarshalJSON()
		if err == nil {
			err = json.Unmarshal(text, &values)
		}
		if err != nil {
			return nil, fmt.Errorf("read the block: %w", err)
		}
		return values, nil
	}
	if v := reflect.ValueOf(raw); v.Kind() == reflect.Map {
		for _, key := range v.MapKeys() {
			values[fmt.Sprint(key.Interface())] = v.MapIndex(key).Interface()
		}
	}
	return values, nil
}

// reader reads the values of a block and of its override, which wins.
type reader struct {
	spec     hcldec.ObjectSpec
	ctx      *interpolate.Context
	values   map[string]any
	problems []error
}

func (r *reader) read(part map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(part)) {
		if value := part[name]; value != nil {
			r.field(name, value)
		}
	}
}

func (r *reader) field(name string, value any) {
	attribute, known := r.spec[name].(*hcldec.AttrSpec)
	switch {
	case name == "type" || strings.HasPrefix(name, "packer_"): // Packer's own
		r.values[name] = value
	case !known:
		r.problems = append(r.problems, r.unknown(name))
	case attribute.Type == cty.Bool:
		r.values[name] = r.flag(name, value)
	case attribute.Type == cty.String:
		r.values[name] = r.text(name, value)
	default:
		r.values[name] = r.list(name, value)
	}
}

func (r *reader) unknown(name string) error {
	own := slices.DeleteFunc(slices.Sorted(maps.Keys(r.spec)), func(n string) bool { return strings.HasPrefix(n, "packer_") })
	if similar := didyoumean.NameSuggestion(name, own); similar != "" {
		return fmt.Errorf("unknown field %.100q; did you mean %s?", name, similar)
	}
	return fmt.Errorf("unknown field %.100q; remove it", name)
}

func (r *reader) fail(name, format string, args ...any) {
	r.problems = append(r.problems, fmt.Errorf("%s: %w", name, fmt.Errorf(format, args...)))
}

func (r *reader) flag(name string, value any) bool {
	if flag, ok := value.(bool); ok {
		return flag
	}
	text, ok := scalar(value)
	if !ok {
		r.fail(name, "write true or false, not %s", kind(value))
		return false
	}
	text, err := r.render(text)
	flag, err2 := strconv.ParseBool(text)
	switch {
	case err != nil:
		r.fail(name, "%w", err)
	case err2 != nil && text != "":
		r.fail(name, "write true or false, not %.100q", text)
	}
	return flag
}

func (r *reader) text(name string, value any) string {
	text, ok := scalar(value)
	if !ok {
		r.fail(name, "write one value in quotes, not %s", kind(value))
		return placeholder
	}
	if name == "execute_command" { // rendered for each run, and may contain a password
		return text
	}
	text, err := r.render(text)
	if err != nil {
		r.fail(name, "%w", err)
		return placeholder
	}
	return text
}

// list never returns nil, which stands for a list that was left out.
func (r *reader) list(name string, value any) []string {
	entries := []string{}
	v := reflect.ValueOf(value)
	if text, ok := scalar(value); ok { // JSON templates may have a single string with commas
		v = reflect.ValueOf(strings.Split(text, ","))
	}
	if v.Kind() != reflect.Slice {
		r.fail(name, "write a list, not %s", kind(value))
		return entries
	}
	for i := range v.Len() {
		entry := v.Index(i).Interface()
		text, ok := scalar(entry)
		if !ok {
			r.fail(name, "entry %d is %s; write a text in quotes, or remove it", i+1, kind(entry))
			continue
		}
		text, err := r.render(text)
		if err != nil {
			r.fail(name, "%w", err)
			continue
		}
		entries = append(entries, text)
	}
	return entries
}

// render fills in a template in Packer's old language, which JSON templates use for variables.
func (r *reader) render(text string) (string, error) {
	rendered, err := interpolate.RenderOnce(text, r.ctx)
	if err != nil {
		return "", fmt.Errorf("%.100q is not a valid template: %w; in HCL, write ${var.NAME} for a variable", text, templateError(err))
	}
	return rendered, nil
}

// templateError removes what package text/template says of its own names.
func templateError(err error) error {
	own := regexp.MustCompile(`^template: root:[\d:]+ (executing "root" at )?`)
	return errors.New(own.ReplaceAllString(err.Error(), ""))
}

// scalar returns a single value as text. Over RPC, text may arrive as bytes.
func scalar(value any) (text string, ok bool) {
	switch v := value.(type) {
	case string:
		return v, true
	case []byte:
		return string(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	case nil:
		return "", false
	}
	switch reflect.ValueOf(value).Kind() {
	case reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint64:
		return fmt.Sprint(value), true
	default:
		return "", false
	}
}

func kind(value any) string {
	switch reflect.ValueOf(value).Kind() {
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map:
		return "an object"
	case reflect.Invalid:
		return "null"
	default:
		return "this value"
	}
}
