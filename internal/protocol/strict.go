package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// object says which members a JSON object has, by their exact names: an object of
// its own, or a pointer to what the value is decoded into. None of these pointers
// leads to a struct or a map, whose members encoding/json would read in its own way.
type object map[string]any

// decode reads one JSON object more strictly than encoding/json does, which takes
// the last of two equal names, ignores their case, and repairs bad UTF-8: three
// ways for two readers, say a firewall and the signer, to see two requests in one.
// Members that are missing stay zero.
func (o object) decode(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if err := o.read(d); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the JSON value")
	}
	return nil
}

// read goes no deeper than o itself does: the value of a name that it does not
// know is never looked at.
func (o object) read(d *json.Decoder) error {
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
		name, _ := token.(string) // within an object, the decoder lets nothing else through
		target, known := o[name]
		switch {
		case !known:
			return fmt.Errorf("unknown field %.64q", name)
		case seen[name]:
			return fmt.Errorf("field %q is there twice", name)
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
	if inner, ok := target.(object); ok {
		return inner.read(d)
	}
	return d.Decode(target)
}
