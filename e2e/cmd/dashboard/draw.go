package main

import (
	"fmt"
	"html"
	"math"
	"regexp"
	"strings"
	"time"
)

const (
	column, row = 50, 32 // pixels of the dashboard's grid
	columns     = 24
	header      = 34
)

func palette() []string {
	return []string{"#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"}
}

// drawing is an SVG picture in the making.
type drawing struct{ strings.Builder }

func (d *drawing) add(format string, args ...any) { fmt.Fprintf(d, format+"\n", args...) }

// text writes a line of text, cut to a width in pixels.
func (d *drawing) text(x, y, width, size int, style, text string) {
	if most := width * 100 / (size * 56); len([]rune(text)) > most {
		text = string([]rune(text)[:max(0, most-1)]) + "…"
	}
	d.add(`<text x="%d" y="%d" font-size="%d"%s>%s</text>`, x, y, size, style, html.EscapeString(text))
}

// draw returns the picture of the dashboard.
func draw(t template, s *store) string {
	d := new(drawing)
	height := 0
	for _, w := range t.widgets {
		height = max(height, (w.Y+w.Height)*row)
	}
	d.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="Helvetica, Arial, sans-serif" fill="#16191f">`, columns*column, height+header)
	d.add(`<rect width="100%%" height="100%%" fill="#f2f3f3"/>`)
	d.text(10, 22, 2*columns*column, 12, "", "A simulated week by the hour. Wednesday: 300 machines boot at once and end in the evening. "+
		"Thursday: Teleport is down for three hours. Sunday: somebody breaks the policy.")
	for _, w := range t.widgets {
		x, y, width, height := w.X*column+4, w.Y*row+header+4, w.Width*column-8, w.Height*row-8
		d.add(`<rect x="%d" y="%d" width="%d" height="%d" rx="4" fill="#fff" stroke="#d5dbdb"/>`, x, y, width, height)
		switch w.Type {
		case "text":
			d.markdown(x+10, y, width-20, w.Properties.Markdown)
		case "alarm":
			d.alarms(x+10, y, width-20, t.alarms, s)
		case "log":
			d.text(x+10, y+18, width-20, 12, ` font-weight="bold"`, w.Properties.Title)
			d.table(x+10, y+36, width-20, w.rows(s, (height-36)/17))
		default:
			d.text(x+10, y+18, width-20, 12, ` font-weight="bold"`, w.Properties.Title)
			d.graph(x+10, y+26, width-20, height-32, w.graph(s))
		}
	}
	d.add(`</svg>`)
	return d.String()
}

var regexpMarkdownLink = regexp.MustCompile(`\[([^\]]+)\]\([^)]+\)`)

func (d *drawing) markdown(x, y, width int, text string) {
	y += 8
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		heading, isHeading := strings.CutPrefix(line, "# ")
		y += 20
		switch {
		case isHeading:
			d.text(x, y, width, 15, ` font-weight="bold"`, strings.ReplaceAll(heading, audience, "hallmark.example.com"))
		case regexpMarkdownLink.MatchString(line):
			d.text(x, y, width, 11, ` fill="#0073bb"`, regexpMarkdownLink.ReplaceAllString(line, "$1"))
		default:
			d.text(x, y, width, 12, "", line)
		}
	}
}

// alarms draws a cell for each alarm, with its state at the end of the week and a strip
// that shows when it was raised.
func (d *drawing) alarms(x, y, width int, list []alarm, s *store) {
	d.text(x, y+18, width, 12, ` font-weight="bold"`, "Alarms")
	const perRow = 4
	cell := width / perRow
	n := 0
	for _, a := range list {
		if a.name == "ConcurrencyAlarm" || a.name == "LoginAlarm" { // this stack reserves, and has no identity file
			continue
		}
		left, top := x+n%perRow*cell, y+26+n/perRow*29
		n++
		states := a.states(s)
		color := "#1d8102"
		if states[len(states)-1] {
			color = "#d13212"
		}
		d.add(`<rect x="%d" y="%d" width="%d" height="25" fill="#fff" stroke="%s"/>`, left, top, cell-8, color)
		d.text(left+6, top+13, cell-20, 10, fmt.Sprintf(` fill="%s" font-weight="bold"`, color), strings.TrimSuffix(a.name, "Alarm"))
		strip := cell - 20
		d.add(`<rect x="%d" y="%d" width="%d" height="4" fill="#d7ecd1"/>`, left+6, top+18, strip)
		for from := 0; from < len(states); {
			to := from
			for to < len(states) && states[to] == states[from] {
				to++
			}
			if states[from] {
				d.add(`<rect x="%.1f" y="%d" width="%.1f" height="4" fill="#d13212"/>`,
					float64(left+6)+float64(strip*from)/float64(len(states)), top+18, float64(strip*(to-from))/float64(len(states)))
			}
			from = to
		}
	}
}

func (d *drawing) table(x, y, width int, rows [][]string) {
	for n, cells := range rows {
		left := x
		for i, cell := range cells {
			span := []int{80, 130, 140, 0}[min(i, 3)]
			if i == len(cells)-1 {
				span = x + width - left
			}
			d.text(left, y+12+n*17, span-6, 10, ` font-family="monospace"`, cell)
			left += span
		}
	}
	if len(rows) == 0 {
		d.text(x, y+12, width, 10, "", "no lines")
	}
}

// graph draws lines over the days of the week, and their names below.
func (d *drawing) graph(x, y, width, height int, lines []series) {
	legend := (len(lines) + 2) / 3
	plot := height - 14 - 12*legend
	left, right := x+34, x+width-34
	scale := [2]float64{peak(lines, false), peak(lines, true)}
	for i := range 3 {
		level := y + plot - plot*i/2
		d.add(`<path d="M%d %dH%d" stroke="#e1e4e8"/>`, left, level, right)
		d.text(x, level+4, 34, 9, ` fill="#545b64"`, short(scale[0]*float64(i)/2))
		if scale[1] > 0 {
			d.text(right+4, level+4, 34, 9, ` fill="#545b64"`, short(scale[1]*float64(i)/2))
		}
	}
	for day := range days {
		d.text(left+(right-left)*day/days, y+plot+11, 40, 9, ` fill="#545b64"`, monday().Add(time.Duration(day)*24*time.Hour).Format("Mon"))
	}
	for n, l := range lines {
		color := palette()[n%len(palette())]
		top := scale[0]
		if l.right {
			top = scale[1]
		}
		d.add(`<path d="%s" fill="none" stroke="%s" stroke-width="1.3"/>`, path(l.values, left, right, y, plot, max(top, 1)), color)
		lx, ly := x+n%3*width/3, y+plot+24+n/3*12
		d.add(`<rect x="%d" y="%d" width="8" height="3" fill="%s"/>`, lx, ly-4, color)
		d.text(lx+12, ly, width/3-14, 9, "", l.label)
	}
}

// peak returns a round number above all values of one scale.
func peak(lines []series, right bool) float64 {
	most := 0.0
	for _, l := range lines {
		for _, v := range l.values {
			if l.right == right && v > most {
				most = v
			}
		}
	}
	if most == 0 {
		return map[bool]float64{false: 1}[right]
	}
	step := math.Pow(10, math.Floor(math.Log10(most)))
	for _, factor := range []float64{1, 2, 5} {
		if most <= step*factor {
			return step * factor
		}
	}
	return step * 10
}

// short writes an axis's number.
func short(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%gk", v/1000)
	}
	return fmt.Sprintf("%g", v)
}

// path draws a line through the values. It leaves out points in the middle of a level
// stretch, and starts again after a gap.
func path(values []float64, left, right, y, plot int, top float64) string {
	var b strings.Builder
	gap := true
	for i, v := range values {
		if math.IsNaN(v) {
			gap = true
			continue
		}
		level := i > 0 && i+1 < len(values) && values[i-1] == v && values[i+1] == v
		px, py := left+(right-left)*i/len(values), y+plot-int(math.Round(float64(plot)*v/top))
		switch {
		case gap:
			fmt.Fprintf(&b, "M%d %d", px, py)
			if i+1 == len(values) || math.IsNaN(values[i+1]) { // a point alone
				b.WriteString("h2")
			}
		case !level:
			fmt.Fprintf(&b, "L%d %d", px, py)
		}
		gap = false
	}
	return b.String()
}
