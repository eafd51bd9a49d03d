//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
)

// joinProgram is the path of Teleport's own program on the machine.
const joinProgram = "/usr/local/bin/teleport"

// printJoin compares an enrollment with Teleport's own command for OpenSSH, on the same
// machine and the same real cluster, one right after the other.
func printJoin(ctx context.Context, c lab.Config, l *lab.Lab, i *lab.Instance) error {
	command, err := prepareJoin(ctx, c, l, i)
	if err != nil {
		return err
	}
	// Teleport's program changes sshd's configuration for good, so it comes second.
	own, err := measureEnrollment(ctx, i)
	if err != nil {
		return err
	}
	theirs, err := measure(ctx, i, func() error { return nil }, command...)
	if err != nil {
		return err
	}
	sizes, err := diskUse(i, "usr/local/bin/hallmark", "var/lib/hallmark", "usr/local/bin/teleport", "var/lib/teleport")
	if err != nil {
		return err
	}
	fmt.Printf("%-46s Teleport %s, %d runs each, median\n", "enroll against teleport join openssh", l.Teleport.Version(), runs)
	compare := func(what string, own, theirs float64, unit, goal string) {
		fmt.Printf("%-46s %9.3f %-4s against %.3f %s: %.1f times less%s\n", what, own, unit, theirs, unit, theirs/own, goal)
	}
	compare("enroll against teleport join openssh, wall", median(own, wall), median(theirs, wall), "s", ", the goal is 2")
	compare("enroll against teleport join openssh, CPU", median(own, cpu), median(theirs, cpu), "s", "")
	compare("enroll against teleport join openssh, memory", median(own, memory), median(theirs, memory), "MB", ", the goal is 10")
	compare("enroll against teleport join openssh, disk", sizes[0]+sizes[1], sizes[2]+sizes[3], "MB", ", the goal is 20")
	return nil
}

// prepareJoin puts Teleport's program on the machine and returns the command that
// joins it.
func prepareJoin(ctx context.Context, c lab.Config, l *lab.Lab, i *lab.Instance) ([]string, error) {
	program, err := os.ReadFile(filepath.Join(c.Teleport, "teleport"))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(i.Path(joinProgram), program, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(i.Path("root/web_ca.crt"), l.Teleport.RootsPEM(), 0o644); err != nil {
		return nil, err
	}
	const token = "bench-join-openssh"
	if _, err := l.Teleport.Tctl(ctx, "tokens", "add", "--type=node", "--value="+token, "--ttl=1h"); err != nil {
		return nil, err
	}
	return []string{
		"env", "SSL_CERT_FILE=/root/web_ca.crt", joinProgram, "join", "openssh",
		"--token=" + token, "--join-method=token", "--proxy-server=" + l.Teleport.Address(), "--address=" + i.Address.String() + ":22",
		"--sshd-restart-command=systemctl reload ssh",
	}, nil
}

// diskUse returns the megabytes that each of the paths takes.
func diskUse(i *lab.Instance, paths ...string) ([]float64, error) {
	var sizes []float64
	for _, path := range paths {
		var size int64
		err := filepath.WalkDir(i.Path(path), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err == nil {
				size += info.Size()
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, float64(size)/megabyte)
	}
	return sizes, nil
}

// auditLine is the part of the signer's audit line that bench needs.
type auditLine struct {
	Code     string `json:"code"`
	Total    int    `json:"total_ms"`
	STS      int    `json:"sts_ms"`
	EC2      int    `json:"ec2_ms"`
	Record   int    `json:"record_ms"`
	Policy   int    `json:"policy_ms"`
	Claim    int    `json:"claim_ms"`
	Lookup   int    `json:"lookup_ms"`
	Teleport int    `json:"teleport_ms"`
	Confirm  int    `json:"confirm_ms"`
}

// printSigner prints how much time the signer adds to the calls that it makes.
func printSigner(l *lab.Lab) error {
	var ratios, totals []cost
	scanner := bufio.NewScanner(strings.NewReader(l.SignerLog()))
	scanner.Buffer(nil, megabyte)
	for scanner.Scan() {
		var line auditLine
		// The log also has other lines, some of them Lambda's.
		if json.Unmarshal(scanner.Bytes(), &line) != nil || line.Code != "granted" {
			continue
		}
		// The signer asks EC2 and the ledger at the same time.
		upstream := line.STS + max(line.EC2, line.Record) + line.Policy + line.Claim + line.Lookup + line.Teleport + line.Confirm
		if upstream == 0 {
			return errors.New("the signer's log has no times of its calls")
		}
		ratios = append(ratios, cost{wall: float64(line.Total) / float64(upstream)})
		totals = append(totals, cost{wall: float64(line.Total) / 1000})
	}
	if len(ratios) < 2 {
		return fmt.Errorf("the signer's log has %d granted requests: too few", len(ratios))
	}
	// The first one was a cold start.
	fmt.Printf("%-46s %9.3f s of the machine's, EC2 and DynamoDB being moto\n", "signer, warm: an enrollment (median)", median(totals[1:], wall))
	show("signer, warm: time over that of its calls", median(ratios[1:], wall), 1.2, "x")
	return scanner.Err()
}
