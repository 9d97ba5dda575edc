package evidence

import (
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strings"

	"claviger.dev"
)

// Collector gathers the attempts of a run. Equal lists of attempts become one
// group, so that a run has a bounded size however many keys it is about.
type Collector struct {
	run    *Run
	groups map[[32]byte]int
}

// Collect returns a collector into a run that has its results and no groups.
func (r *Run) Collect() *Collector { return &Collector{r, map[[32]byte]int{}} }

// Add says that attempts about something hold for some results, by their index
// in the run. Texts are made fit for a statement, and more attempts than a
// group takes are split over several.
func (c *Collector) Add(about string, attempts []claviger.Attempt, results ...int) {
	for list := range slices.Chunk(attempts, MaxAttempts) {
		g := Group{About: plain(about), Attempts: slices.Clone(list)}
		for i := range g.Attempts {
			a := &g.Attempts[i]
			for _, s := range []*string{&a.Probe, &a.Tried, &a.Result, &a.Control, &a.Reason} {
				*s = plain(*s)
			}
		}
		index := c.group(g)
		for _, i := range results {
			res := &c.run.Results[i]
			if at, found := slices.BinarySearch(res.Groups, index); !found {
				res.Groups = slices.Insert(res.Groups, at, index)
			}
		}
	}
}

func (c *Collector) group(g Group) int {
	text, _ := json.Marshal(g) // strings always marshal
	sum := sha256.Sum256(text)
	index, known := c.groups[sum]
	if !known {
		index = len(c.run.Groups)
		c.run.Groups, c.groups[sum] = append(c.run.Groups, g), index
	}
	return index
}

// plain makes a text fit for a statement and a terminal.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if unprintable(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return clip(s)
}
