package report

import (
	"cmp"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// Report is the whole report, and the object that JSON writes.
type Report struct {
	// Time is when the sources were read.
	Time time.Time `json:"time"`
	// Complete says that all sources were read.
	Complete bool    `json:"complete"`
	Gaps     []Gap   `json:"gaps"`
	Summary  Summary `json:"summary"`
	// Instances are the rows that the filter admits.
	Instances []Row `json:"instances"`
}

// Summary counts the rows of a report.
type Summary struct {
	Instances int `json:"instances"`
	// States counts the rows in each state; it has all states.
	States map[State]int `json:"states"`
}

// New returns the report on these rows.
func New(rows []Row, gaps []Gap, now time.Time) Report {
	r := Report{
		Time: now.UTC().Truncate(time.Second), Complete: len(gaps) == 0, Gaps: gaps, Instances: rows,
		Summary: Summary{Instances: len(rows), States: make(map[State]int)},
	}
	for _, s := range States() {
		r.Summary.States[s] = 0
	}
	for _, row := range rows {
		r.Summary.States[row.State]++
	}
	if r.Gaps == nil {
		r.Gaps = []Gap{}
	}
	if r.Instances == nil {
		r.Instances = []Row{}
	}
	return r
}

// String returns the summary in one line, with the states that occur.
func (s Summary) String() string {
	noun := "instances"
	if s.Instances == 1 {
		noun = "instance"
	}
	parts := make([]string, 0, len(s.States))
	for _, state := range States() {
		if n := s.States[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	if len(parts) == 0 {
		return "0 instances"
	}
	return fmt.Sprintf("%d %s: %s", s.Instances, noun, strings.Join(parts, ", "))
}

// WriteJSON writes the report as one object.
func (r Report) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

// WriteCSV writes a line of names and one line for each row (RFC 4180, with LF).
func (r Report) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	_ = out.Write([]string{ // Flush keeps the error
		"instance", "account", "region", "host_name", "rule", "version", "renewed", "certificate_end", "state", "reason", "ec2_state", "node_id",
	})
	for _, i := range r.Instances {
		cells := []string{
			string(i.Instance), string(i.Account), string(i.Region), i.Hostname, i.Rule, i.Version, moment(i.Renewed, time.RFC3339),
			moment(i.CertificateEnd, time.RFC3339), string(i.State), i.Reason, i.EC2State, i.NodeID,
		}
		for n, cell := range cells {
			cells[n] = noFormula(visible(cell))
		}
		_ = out.Write(cells)
	}
	out.Flush()
	return out.Error()
}

// WriteTable writes a table for people, with the summary below it.
func (r Report) WriteTable(w io.Writer) error {
	if len(r.Instances) > 0 {
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "HOST NAME\tINSTANCE\tACCOUNT\tREGION\tRULE\tVERSION\tRENEWED\tCERTIFICATE END\tSTATE\tREASON")
		const minutes = "2006-01-02 15:04"
		for _, i := range r.Instances {
			cells := []string{
				i.Hostname, string(i.Instance), string(i.Account), string(i.Region), i.Rule, i.Version,
				moment(i.Renewed, minutes), moment(i.CertificateEnd, minutes), string(i.State), i.Reason,
			}
			for n, cell := range cells {
				cells[n] = cmp.Or(visible(cell), "-")
			}
			fmt.Fprintln(table, strings.Join(cells, "\t"))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w, r.Summary)
	return err
}

// visible replaces characters that could change a terminal or the table: anyone who may write
// nodes chooses their names.
func visible(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// noFormula puts an apostrophe before text that a spreadsheet would read as a formula
// (https://owasp.org/www-community/attacks/CSV_Injection). No instance, host name, rule or
// version begins like that, unless someone wrote a node by hand.
func noFormula(text string) string {
	if text != "" && strings.ContainsRune("=+-@", rune(text[0])) {
		return "'" + text
	}
	return text
}

// moment writes a time in UTC, or nothing if it is not known.
func moment(t time.Time, layout string) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(layout)
}
