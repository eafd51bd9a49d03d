package strictyaml

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// unknown adds a problem with a key that the innermost struct does not have, and says
// which key was probably meant, or where it belongs.
func (f *File) unknown(v Value, key *yaml.Node) {
	at := Value{file: f, parent: &v, node: key, mark: key, title: v.title, path: v.path}
	name, in := shorten(key.Value, maxExcerpt), f.within[len(f.within)-1]
	names := namesOf(in)
	if meant := Nearest(key.Value, names); meant != "" {
		at.Failf("unknown key %s; did you mean %s?", name, meant)
		f.misnamed[missing{v.node, meant}] = true
		return
	}
	if under := placeOf(key.Value, in, ""); under != "" {
		at.Failf("unknown key %s; it belongs under %s", name, under)
		f.misnamed[missing{v.node, key.Value}] = true
		return
	}
	for _, outer := range f.within[:len(f.within)-1] {
		if slices.Contains(namesOf(outer), key.Value) {
			at.Failf("unknown key %s; indent it less: it does not belong here", name)
			return
		}
	}
	at.Failf("unknown key %s; the keys here are %s", name, strings.Join(names, ", "))
}

func namesOf(t reflect.Type) []string {
	var names []string
	for _, k := range fieldsOf(t) {
		names = append(names, k.name)
	}
	return names
}

// placeOf returns the path of the mapping below a struct that has a key, or "".
func placeOf(name string, in reflect.Type, path string) string {
	for _, k := range fieldsOf(in) {
		t := in.Field(k.index).Type
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			continue
		}
		below := strings.TrimPrefix(fmt.Sprintf("%s.%s", path, k.name), ".")
		if slices.Contains(namesOf(t), name) {
			return below
		}
		if found := placeOf(name, t, below); found != "" {
			return found
		}
	}
	return ""
}

// Nearest returns the name that was probably meant by another, or "".
func Nearest(typed string, names []string) string {
	const longest = 64
	if len(typed) > longest {
		return ""
	}
	best, least := "", 1+max(1, min(len(typed)/3, 3))
	for _, name := range names {
		d := distance(plain(typed), plain(name))
		if d < least {
			best, least = name, d
		}
	}
	if best != "" || len(typed) < 3 {
		return best
	}
	for _, name := range names { // one word of several: lifetime for certificate_lifetime
		if strings.HasPrefix(name, typed+"_") || strings.HasSuffix(name, "_"+typed) {
			return name
		}
	}
	return ""
}

// plain removes what people mix up: case, hyphens and underscores.
func plain(name string) string {
	return strings.NewReplacer("-", "", "_", "", " ", "").Replace(strings.ToLower(name))
}

// distance is the number of letters to insert, remove, replace or swap with the next
// (optimal string alignment).
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
