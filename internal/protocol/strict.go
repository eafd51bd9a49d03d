package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// object says which members a JSON object has, by their exact names: another object, a
// function that reads the value's text, or a pointer to decode the value into. None of these
// pointers leads to a struct or a map, because encoding/json would read its members by its own
// rules.
type object map[string]any

// decode reads one JSON object more strictly than encoding/json, which takes the last of two
// equal names, ignores case, and repairs bad UTF-8: three ways for two readers, such as a
// firewall and the signer, to see two different requests in one. Missing members stay zero.
func (o object) decode(data []byte) error { return o.decodeWith(data, o.refuse) }

// decodeOpen skips some members that o does not know.
func (o object) decodeOpen(data []byte) error { return o.decodeWith(data, o.passOver) }

func (o object) decodeWith(data []byte, unknown unknownMember) error {
	if !utf8.Valid(data) {
		return errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if err := o.read(d, unknown); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the JSON value")
	}
	return nil
}

// unknownMember decides about a member that an object does not know, before reading its value.
// seen are the names so far.
type unknownMember func(name string, seen map[string]bool) error

func (object) refuse(name string, _ map[string]bool) error {
	return fmt.Errorf("unknown field %.64q", name)
}

// passOver refuses a name that could be mistaken for a known member.
func (o object) passOver(name string, seen map[string]bool) error {
	for known := range o {
		if strings.EqualFold(known, name) {
			return fmt.Errorf("unknown field %.64q, like %q", name, known)
		}
	}
	if !memberPattern.MatchString(name) || len(seen) >= maxReportMembers {
		return fmt.Errorf("unknown field %.64q", name)
	}
	return nil
}

// read goes no deeper than o itself: it never looks at the value of an unknown name.
func (o object) read(d *json.Decoder, unknown unknownMember) error {
	open, err := d.Token()
	if err != nil {
		return err
	}
	if open != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	seen := make(map[string]bool, len(o))
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string) // inside an object, the decoder allows nothing else
		target, known := o[name]
		if seen[name] {
			return fmt.Errorf("field %.64q appears twice", name)
		}
		if !known {
			if err := unknown(name, seen); err != nil {
				return err
			}
			target = new(json.RawMessage)
		}
		seen[name] = true
		if err := readMember(d, target); err != nil {
			return fmt.Errorf("field %q: %w", name, err)
		}
	}
	_, err = d.Token() // the closing brace
	return err
}

func readMember(d *json.Decoder, target any) error {
	switch target := target.(type) {
	case object:
		return target.read(d, target.refuse)
	case func([]byte) error:
		var text json.RawMessage
		if err := d.Decode(&text); err != nil {
			return err
		}
		return target(text)
	}
	return d.Decode(target)
}
