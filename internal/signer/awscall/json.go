package awscall

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// Members reads a JSON object that spans all of data and contains each name once.
// encoding/json alone would take the last of several, in any case.
func Members(data []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is not an object")
	}
	object := make(map[string]json.RawMessage)
	for d.More() {
		t, err := d.Token()
		name, _ := t.(string)
		if _, twice := object[name]; err != nil || twice {
			return nil, errors.New("a key is malformed or appears twice")
		}
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return nil, errors.New("a value is malformed")
		}
		object[name] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("it is cut off")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows it")
	}
	return object, nil
}

// Text returns the value of a JSON string, and "" for anything else.
func Text(value json.RawMessage) (s string) {
	if json.Unmarshal(value, &s) != nil {
		return ""
	}
	return s
}
