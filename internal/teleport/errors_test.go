package teleport

import (
	"errors"
	"testing"
)

func TestCheckVersion(t *testing.T) {
	for version, tooOld := range map[string]bool{
		"12.4.23": true, "9.0.0": true, "13.3.8": false, "18.0.0-dev": false, "v15.1.0": false, "25.0.1": false, "": false, "unknown": false,
	} {
		if err := checkVersion(version); errors.Is(err, ErrDenied) != tooOld {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

func TestAdviceIsSilentOnTheUnknown(t *testing.T) {
	if hint := advice(errors.New("something else")); hint != "" {
		t.Errorf("advice %q", hint)
	}
}
