package entry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// invokeRequest reads a direct invocation (protocol.Invocation). The sender wrote all of it,
// so nothing in it says where it comes from. A field that this form does not have, such as the
// other entries' requestContext, makes it another kind of event.
func invokeRequest(event []byte) (Request, error) {
	var e protocol.Invocation
	decoder := json.NewDecoder(bytes.NewReader(event))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&e); err != nil {
		return Request{}, errors.New("not the JSON of such an event")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Request{}, errors.New("more than one JSON value")
	}
	if e.Hallmark != protocol.InvocationVersion || e.Method == "" {
		return Request{}, fmt.Errorf("form %d, method %.16q", e.Hallmark, e.Method)
	}
	return Request{
		Method: e.Method, ContentType: "application/json", IfNoneMatch: e.IfNoneMatch, Health: e.Health, Body: body(e.Body, false),
	}, nil
}

func invokeResponse(a Answer) ([]byte, error) {
	return json.Marshal(protocol.InvocationAnswer{Status: a.Status, Header: a.Header, Body: string(a.Body)})
}
