package operator

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// maxOrdersBytes bounds the file of permit-rekey --from: some ten thousand lines.
const maxOrdersBytes = 1 << 20

// rekeyOrder is one permit to give.
type rekeyOrder struct {
	line        int
	instance    ec2ref.Instance
	fingerprint string
}

// readOrders reads the file of permit-rekey --from. It prints what is wrong with each line,
// and fails if any line is wrong: such a list is not the one that was collected from the
// machines.
func readOrders(cmd *cobra.Command, path string, at ec2ref.Instance) ([]rekeyOrder, error) {
	in := cmd.InOrStdin()
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("permit-rekey: --from: %w", err)
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	orders, wrong, err := parseOrders(in, at)
	if err != nil {
		return nil, fmt.Errorf("permit-rekey: read %s: %w", path, err)
	}
	for _, w := range wrong {
		cli.Note(cmd, "%s %s", path, w)
	}
	switch {
	case len(wrong) > 0:
		return nil, &cli.Error{Err: fmt.Errorf("permit-rekey: %d wrong lines in %s; nothing was permitted", len(wrong), path), Code: cli.Failed,
			Hint: "want lines such as: i-0123456789abcdef0 SHA256:..., as ssh-keygen -l prints the fingerprint"}
	case len(orders) == 0:
		return nil, fmt.Errorf("permit-rekey: no instances in %s", path)
	}
	return orders, nil
}

// parseOrders returns the orders, and what is wrong with each wrong line.
func parseOrders(in io.Reader, at ec2ref.Instance) (orders []rekeyOrder, wrong []string, err error) {
	limited := &io.LimitedReader{R: in, N: maxOrdersBytes + 1}
	lines := bufio.NewScanner(limited)
	instances, keys := make(map[string]int), make(map[string]int)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		order, err := parseOrder(text, at)
		if err == nil {
			err = errors.Join(unique(instances, string(order.instance.ID), n), unique(keys, order.fingerprint, n))
		}
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("line %d: %s", n, cli.OneLine(err)))
			continue
		}
		order.line = n
		orders = append(orders, order)
	}
	if limited.N == 0 {
		return nil, nil, fmt.Errorf("more than %d bytes", maxOrdersBytes)
	}
	return orders, wrong, lines.Err()
}

func parseOrder(text string, at ec2ref.Instance) (rekeyOrder, error) {
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return rekeyOrder{}, fmt.Errorf("%d words, want an instance id and a fingerprint", len(fields))
	}
	id, err := ec2ref.ParseInstanceID(fields[0])
	if err != nil {
		return rekeyOrder{}, err
	}
	if !sshkey.IsFingerprint(fields[1]) {
		return rekeyOrder{}, fmt.Errorf("%.64q is not a fingerprint (SHA256:…)", fields[1])
	}
	at.ID = id
	return rekeyOrder{instance: at, fingerprint: fields[1]}, nil
}

// unique records the line of a value that the file may contain only once: an instance has one
// permit at a time, and a key that two instances share must not be permitted.
func unique(seen map[string]int, what string, line int) error {
	if first, again := seen[what]; again {
		return fmt.Errorf("%s is in line %d already", what, first)
	}
	seen[what] = line
	return nil
}
