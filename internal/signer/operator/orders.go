package operator

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

const hintOrders = "want lines such as: i-0123456789abcdef0 SHA256:..., as ssh-keygen -l prints the fingerprint"

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
	data, err := readFile(path, cmd.InOrStdin())
	if err == nil && !isText(data) {
		err = fmt.Errorf("%s is not a text file", path)
	}
	if err != nil {
		return nil, fmt.Errorf("permit-rekey: --from: %w", err)
	}
	orders, wrong, err := parseOrders(data, at)
	if err != nil {
		return nil, fmt.Errorf("permit-rekey: read %s: %w", path, err)
	}
	for _, w := range wrong {
		cli.Note(cmd, "%s %s", path, w)
	}
	switch {
	case len(wrong) > 0:
		return nil, &cli.Error{Err: fmt.Errorf("permit-rekey: nothing was permitted; wrong lines in %s: %d", path, len(wrong)), Code: cli.Failed,
			Hint: hintOrders}
	case len(orders) == 0:
		return nil, &cli.Error{Err: fmt.Errorf("permit-rekey: no instances in %s", path), Code: cli.Failed, Hint: hintOrders}
	}
	return orders, nil
}

// parseOrders returns the orders, and what is wrong with each wrong line.
func parseOrders(data []byte, at ec2ref.Instance) (orders []rekeyOrder, wrong []string, err error) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	instances, keys := make(map[string]int), make(map[string]int)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		order, err := parseOrder(text, at)
		if err == nil {
			err = unique(instances, string(order.instance.ID), n)
		}
		if err == nil {
			err = unique(keys, order.fingerprint, n)
		}
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("line %d: %s", n, cli.OneLine(err)))
			continue
		}
		order.line = n
		orders = append(orders, order)
	}
	return orders, wrong, lines.Err()
}

func parseOrder(text string, at ec2ref.Instance) (rekeyOrder, error) {
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return rekeyOrder{}, fmt.Errorf("want two words, an instance id and a fingerprint; this line has %d", len(fields))
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

// isText reports whether people can have written a file.
func isText(data []byte) bool { return utf8.Valid(data) && bytes.IndexByte(data, 0) < 0 }
