// Package teleport holds the files that an administrator of Teleport applies, for the
// tests that apply them.
package teleport

import _ "embed"

// Role, Token and Bot are the content of role.yaml, token.yaml and bot.yaml.
var (
	//go:embed role.yaml
	Role string
	//go:embed token.yaml
	Token string
	//go:embed bot.yaml
	Bot string
)
