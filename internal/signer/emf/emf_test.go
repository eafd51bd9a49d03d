package emf

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/emf/emftest"
)

func TestAttrs(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	one, other := By("signer"), By("signer", "code")
	one.Count("nodes", 3)
	one.Happened("yes", true)
	one.Happened("no", false)
	one.Milliseconds("took", 1500*time.Millisecond)
	one.Seconds("left", -90*time.Second)
	other.Count("requests", 1)

	var b bytes.Buffer
	attrs := append([]slog.Attr{slog.String("signer", "s"), slog.String("code", "c")}, Attrs(at, one, other)...)
	slog.New(slog.NewJSONHandler(&b, nil)).LogAttrs(t.Context(), slog.LevelInfo, "", attrs...)
	var line map[string]any
	if err := json.Unmarshal(b.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	metadata := emftest.Check(t, line, at)
	if n := len(metadata.CloudWatchMetrics); n != 2 || len(metadata.CloudWatchMetrics[0].Metrics) != 5 {
		t.Errorf("%d directives: %+v", n, metadata)
	}
	for name, want := range map[string]float64{"nodes": 3, "yes": 1, "no": 0, "took": 1500, "left": -90, "requests": 1} {
		if line[name] != want {
			t.Errorf("%s is %v, want %v", name, line[name], want)
		}
	}
}
