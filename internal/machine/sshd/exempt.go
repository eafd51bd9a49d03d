package sshd

import "strings"

// ExemptSources returns the value of a PerSourcePenaltyExemptList that holds in all of the
// logins' settings, and whether this sshd has that keyword: OpenSSH 9.8 and later do. The
// keyword is one of those that Match blocks cannot set, so every login has the same.
func ExemptSources(logins []Login) (value string, known bool) {
	for _, login := range logins {
		for line := range strings.Lines(string(login.Settings)) {
			keyword, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			if keyword == exemptKeyword {
				return noneIsEmpty(rest), true
			}
		}
	}
	return "", false
}

const exemptKeyword = "persourcepenaltyexemptlist"
