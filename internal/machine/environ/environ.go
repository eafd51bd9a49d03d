// Package environ is the environment of the programs that Hallmark starts.
package environ

import (
	"os"
	"slices"
	"strings"
)

// ForPrograms returns this process's environment and more variables, as NAME=VALUE. It leaves
// out the proxies: their URLs may have a password, and only Hallmark itself connects through
// them.
func ForPrograms(more ...string) []string {
	own := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return strings.HasSuffix(strings.ToUpper(name), "_PROXY")
	})
	return append(own, more...)
}
