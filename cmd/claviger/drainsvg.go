package main

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"

	pb "claviger.dev/api/claviger/v1"
)

// The picture of a drain, in SVG 1.1 pixels.
const (
	svgWide, svgHigh                     = 960, 420
	svgLeft, svgRight, svgTop, svgBottom = 72, 180, 56, 52
	plotWide, plotHigh                   = svgWide - svgLeft - svgRight, svgHigh - svgTop - svgBottom
	svgInk, svgFaint, svgPaper           = "#1f2933", "#9aa5b1", "#ffffff"
	svgFont                              = "font-family=\"system-ui, sans-serif\""
)

// versionColours are told apart with any kind of colour vision; the newest
// version has the first.
var versionColours = []string{"#0b5fa5", "#d1495b", "#2a9d5c", "#8a5cc2", "#b7791f", "#5c6b73"}

// curve is what was checked under one version, over time.
type curve struct {
	version *pb.DrainVersion
	counts  []float64 // by bucket
}

// drainSVG draws how many items were checked under each version over time,
// summed over all servers.
func drainSVG(d *pb.DrainResponse, since time.Duration) []byte {
	width, unit := time.Minute, "minute"
	if len(d.Flows) > 0 && d.Flows[0].Width.AsDuration() == time.Hour || len(d.Flows) == 0 && since > 6*time.Hour {
		width, unit = time.Hour, "hour"
	}
	end := d.At.AsTime().Truncate(width) // the one that runs is not full yet
	start := d.At.AsTime().Add(-max(since, 2*width)).Truncate(width)
	curves, most := curvesOf(d, start, end, width)
	step := niceStep(most / 4)
	top := math.Max(step*math.Ceil(most/step), step)
	p := picture{start: start, end: end, top: top}
	p.printf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="Drain of %s">`,
		svgWide, svgHigh, svgWide, svgHigh, html.EscapeString(d.Key))
	p.printf(`<rect width="100%%" height="100%%" fill="%s"/>`, svgPaper)
	p.text(svgLeft, 26, 16, svgInk, "start", d.Key)
	p.text(svgLeft, 44, 12, svgFaint, "start", fmt.Sprintf("checked per %s and version, to %s UTC", unit, end.UTC().Format("2006-01-02 15:04")))
	p.axes(step)
	p.marks(d)
	for i, c := range curves {
		p.curve(c, versionColours[i%len(versionColours)], width, i)
	}
	p.printf("</svg>\n")
	return []byte(p.b.String())
}

// curvesOf sums the flows of each version by bucket, the newest version first.
// A version of which nothing was seen has a curve too, at zero.
func curvesOf(d *pb.DrainResponse, start, end time.Time, width time.Duration) (list []curve, most float64) {
	n := int(end.Sub(start) / width)
	for i := len(d.Versions) - 1; i >= 0 && len(list) < len(versionColours); i-- {
		c := curve{version: d.Versions[i], counts: make([]float64, n)}
		for _, f := range d.Flows {
			if at := int(f.At.AsTime().Sub(start) / width); f.Version == c.version.Number && at >= 0 && at < n {
				c.counts[at] += float64(f.Checked)
				most = math.Max(most, c.counts[at])
			}
		}
		list = append(list, c)
	}
	return list, most
}

// picture is being drawn.
type picture struct {
	b          strings.Builder
	start, end time.Time
	top        float64
}

func (p *picture) printf(format string, args ...any) { fmt.Fprintf(&p.b, format+"\n", args...) }

func (p *picture) text(x, y float64, size int, colour, anchor, text string) {
	p.printf(`<text x="%.1f" y="%.1f" font-size="%d" fill="%s" text-anchor="%s" %s>%s</text>`, x, y, size, colour, anchor, svgFont, html.EscapeString(text))
}

func (p *picture) x(at time.Time) float64 {
	return svgLeft + plotWide*float64(at.Sub(p.start))/float64(p.end.Sub(p.start))
}

func (p *picture) y(n float64) float64 { return svgTop + plotHigh*(1-n/p.top) }

// axes draws the grid with round numbers and times.
func (p *picture) axes(step float64) {
	for n := 0.0; n <= p.top+step/2; n += step {
		y := p.y(n)
		p.printf(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="%s" stroke-width="%s"/>`, svgLeft, y, svgLeft+plotWide, y, svgFaint, map[bool]string{true: "1", false: "0.4"}[n == 0])
		p.text(svgLeft-8, y+4, 11, svgInk, "end", shortNumber(n))
	}
	span := p.end.Sub(p.start)
	tick, layout := timeStep(span), "15:04"
	switch {
	case tick >= 24*time.Hour:
		layout = "2 Jan"
	case span > 20*time.Hour:
		layout = "2 Jan 15:04"
	}
	for at := p.start.Truncate(tick).Add(tick); at.Before(p.end); at = at.Add(tick) {
		x := p.x(at)
		p.printf(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s" stroke-width="1"/>`, x, svgTop+plotHigh, x, svgTop+plotHigh+5, svgFaint)
		p.text(x, svgTop+plotHigh+20, 11, svgInk, "middle", at.UTC().Format(layout))
	}
	p.text(svgLeft+plotWide/2, svgHigh-10, 11, svgFaint, "middle", "time (UTC)")
}

// marks draws when versions were activated, retire or were retired.
func (p *picture) marks(d *pb.DrainResponse) {
	mark := func(at time.Time, what string, level int) {
		if at.Before(p.start) || at.After(p.end) {
			return
		}
		x := p.x(at)
		p.printf(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s" stroke-width="1" stroke-dasharray="4 4"/>`, x, svgTop, x, svgTop+plotHigh, svgInk)
		anchor, dx := "start", 4.0
		if x > svgLeft+plotWide*0.8 {
			anchor, dx = "end", -4.0
		}
		p.text(x+dx, svgTop+12+14*float64(level), 11, svgInk, anchor, what)
	}
	for i, v := range d.Versions {
		if i > 0 && v.Activated != nil {
			mark(v.Activated.AsTime(), fmt.Sprintf("version %d", v.Number), 0)
		}
		if v.Retired != nil {
			mark(v.Retired.AsTime(), fmt.Sprintf("version %d retired", v.Number), 1)
		}
	}
}

// curve draws one version as steps, and names it beside the plot.
func (p *picture) curve(c curve, colour string, width time.Duration, place int) {
	var path strings.Builder
	sum, last := 0.0, 0.0
	for i, n := range c.counts {
		at := p.start.Add(time.Duration(i) * width)
		command := "L"
		if i == 0 {
			command = "M"
		}
		fmt.Fprintf(&path, "%s%.1f %.1f L%.1f %.1f ", command, p.x(at), p.y(n), p.x(at.Add(width)), p.y(n))
		sum, last = sum+n, n
	}
	p.printf(`<path d="%s" fill="none" stroke="%s" stroke-width="2" stroke-linejoin="round"/>`, strings.TrimSpace(path.String()), colour)
	x, y := float64(svgLeft+plotWide+16), float64(svgTop+14+place*54)
	p.printf(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="4"/>`, x, y-4, x+16, y-4, colour)
	p.text(x+22, y, 12, svgInk, "start", fmt.Sprintf("version %d", c.version.Number))
	p.text(x+22, y+15, 11, svgFaint, "start", stateOf(c.version))
	p.text(x+22, y+29, 11, svgFaint, "start", fmt.Sprintf("%s here, last %s", shortNumber(sum), shortNumber(last)))
}

// niceStep is the next of 1, 2, 5, 10, 20, 50 and so on, at least 1.
func niceStep(n float64) float64 {
	if n <= 1 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(n)))
	for _, m := range []float64{1, 2, 5} {
		if n <= m*power {
			return m * power
		}
	}
	return 10 * power
}

// timeStep is a round time that gives about six ticks.
func timeStep(span time.Duration) time.Duration {
	steps := []time.Duration{time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour,
		24 * time.Hour, 48 * time.Hour, 7 * 24 * time.Hour, 14 * 24 * time.Hour, 28 * 24 * time.Hour}
	for _, s := range steps {
		if span/s <= 8 {
			return s
		}
	}
	return 60 * 24 * time.Hour
}

// shortNumber writes 1500 as 1.5k.
func shortNumber(n float64) string {
	for _, unit := range []struct {
		size float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if n >= unit.size {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", n/unit.size), ".0") + unit.name
		}
	}
	return fmt.Sprintf("%.0f", n)
}
