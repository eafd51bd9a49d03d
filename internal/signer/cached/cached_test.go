package cached

import (
	"errors"
	"testing"
	"time"
)

func TestGet(t *testing.T) {
	rule := Rule{What: "the number", Fresh: 10 * time.Second, Kept: 60 * time.Second, Pause: 5 * time.Second}
	down := errors.New("down")
	type step struct {
		at      int // seconds
		read    int // what the service answers; 0: nothing
		want    int
		err     error
		wantNot bool // the service must not be asked
	}
	for name, steps := range map[string][]step{
		"first":                     {{0, 1, 1, nil, false}},
		"fresh":                     {{0, 1, 1, nil, false}, {9, 2, 1, nil, true}},
		"old":                       {{0, 1, 1, nil, false}, {10, 2, 2, nil, false}},
		"down from the beginning":   {{0, 0, 0, down, false}, {4, 1, 0, ErrPaused, true}, {5, 1, 1, nil, false}},
		"down, and kept":            {{0, 1, 1, nil, false}, {10, 0, 1, nil, false}, {14, 2, 1, nil, true}, {15, 2, 2, nil, false}},
		"down for too long":         {{0, 1, 1, nil, false}, {59, 0, 1, nil, false}, {60, 2, 1, ErrPaused, true}, {64, 0, 1, down, false}},
		"a clock that was set back": {{100, 1, 1, nil, false}, {0, 2, 2, nil, false}},
	} {
		t.Run(name, func(t *testing.T) {
			var v Value[int]
			for n, s := range steps {
				now := func() time.Time { return time.Unix(1_000_000+int64(s.at), 0) }
				asked := false
				got, err := v.Get(rule, now, func(last int, _ bool) (int, error) {
					asked = true
					if last != v.Last() {
						t.Errorf("step %d: read gets %d, not the last value %d", n, last, v.Last())
					}
					if s.read == 0 {
						return 0, down
					}
					return s.read, nil
				})
				if !errors.Is(err, s.err) || err == nil && got != s.want || asked == s.wantNot {
					t.Errorf("step %d: %d, %v; asked: %t", n, got, err, asked)
				}
			}
		})
	}
}

// A read that takes so long that the last value is too old by then returns its error.
func TestGetTakesLong(t *testing.T) {
	rule := Rule{Fresh: 10 * time.Second, Kept: 60 * time.Second, Pause: 5 * time.Second}
	at, down := time.Unix(1_000_000, 0), errors.New("down")
	now := func() time.Time { return at }
	var v Value[int]
	if _, err := v.Get(rule, now, func(int, bool) (int, error) { return 1, nil }); err != nil {
		t.Fatal(err)
	}
	at = at.Add(59 * time.Second)
	_, err := v.Get(rule, now, func(_ int, usable bool) (int, error) {
		if !usable {
			t.Error("the last value is not usable when the read begins")
		}
		at = at.Add(time.Second)
		return 0, down
	})
	if !errors.Is(err, down) {
		t.Errorf("error %v", err)
	}
}
