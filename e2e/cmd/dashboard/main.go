// Command dashboard draws the dashboard of the signer's stack, docs/dashboard.svg, from
// template.yaml and the metrics of a simulated week: the product's own enrollment and upkeep
// run with a simulated clock, and with stand-ins for AWS, Teleport and the machines.
//
//	go run ./e2e/cmd/dashboard docs/dashboard.svg
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: dashboard FILE, at the top of the repository")
	}
	picture, _, err := picture(ctx, "template.yaml")
	if err != nil {
		return err
	}
	return os.WriteFile(args[0], []byte(picture), 0o644)
}

// picture simulates the week and draws it.
func picture(ctx context.Context, templateFile string) (string, *store, error) {
	text, err := os.ReadFile(templateFile)
	if err != nil {
		return "", nil, err
	}
	t, err := readTemplate(text)
	if err != nil {
		return "", nil, err
	}
	w, err := newWeek()
	if err != nil {
		return "", nil, err
	}
	s, err := w.run(ctx)
	if err != nil {
		return "", nil, err
	}
	return draw(t, s), s, nil
}
