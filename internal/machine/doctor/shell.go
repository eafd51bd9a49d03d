package doctor

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

func placesOf(lines []sshd.Line) (places []string) {
	for _, l := range lines {
		places = append(places, fmt.Sprintf("%s:%d", l.File, l.Number))
	}
	return places
}

// cutPlace is the inverse of placesOf for one place.
func cutPlace(place string) (file, line string) {
	n := strings.LastIndex(place, ":")
	return place[:n], place[n+1:]
}

// edit returns the command that opens a file at a line.
func edit(file, line string) string { return "${EDITOR:-vi} +" + line + " " + quote(file) }

func moveAway(path string) string { return "mv -T " + quote(path) + " " + quote(path+".moved") }

// quote returns a path as a shell takes it for one word.
func quote(path string) string {
	special := func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-+:@%,", r)
	}
	if path != "" && !strings.ContainsFunc(path, special) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
