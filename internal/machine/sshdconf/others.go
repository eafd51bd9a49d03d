package sshdconf

import (
	"bytes"
	"slices"
	"strings"
)

// OthersLines returns the lines of a drop-in that Hallmark does not write. Somebody added them
// although the file says that they would be lost.
func OthersLines(dropIn []byte) []byte {
	own := []string{"trustedusercakeys", "hostcertificate", "maxstartups", "persourcepenaltyexemptlist"}
	header := map[string]bool{}
	for line := range strings.Lines(string(Options{}.Render())) {
		if keyword, _ := SplitDirective(line); keyword == "" {
			header[strings.TrimSpace(line)] = true
		}
	}
	var rest strings.Builder
	inMatch := false // Hallmark writes no Match block
	for line := range strings.Lines(string(dropIn)) {
		keyword, _ := SplitDirective(line)
		inMatch = inMatch || keyword == "match"
		if inMatch || !header[strings.TrimSpace(line)] && !slices.Contains(own, keyword) {
			rest.WriteString(line)
		}
	}
	if strings.TrimSpace(rest.String()) == "" {
		return nil
	}
	return []byte(rest.String())
}

// Restored returns the configuration without the marked block and Hallmark's lines in it.
// Lines that somebody added to the block stay in its place.
func Restored(config []byte) ([]byte, error) {
	if _, err := WithoutBlock(config); err != nil { // it is whole
		return nil, err
	}
	var rest, block bytes.Buffer
	inside := false
	for line := range strings.Lines(string(config)) {
		switch strings.TrimSpace(line) {
		case BlockBegin:
			inside = true
		case BlockEnd:
			inside = false
			rest.Write(OthersLines(block.Bytes()))
		default:
			if inside {
				block.WriteString(line)
			} else {
				rest.WriteString(line)
			}
		}
	}
	return rest.Bytes(), nil
}
