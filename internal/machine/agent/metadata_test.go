package agent

import (
	"net/http"
	"testing"
)

// A metadata service that is restarted during a run forgets the run's session token.
func TestEnrollGetsANewSessionToken(t *testing.T) {
	m := newMachine(t)
	pages := 0
	m.imds.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			pages = 0
			return false
		}
		if pages++; pages == 1 {
			return false
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Error(err)
	}
}
