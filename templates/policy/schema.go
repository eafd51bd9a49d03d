// Package policy holds what helps to write policy files: the JSON schema, and
// examples beside it.
package policy

import _ "embed"

// Schema is the content of policy.schema.json.
//
//go:embed policy.schema.json
var Schema []byte
