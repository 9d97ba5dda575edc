package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

// watch is how a drain is looked at.
type watch struct {
	interval time.Duration
	once     bool
	svg      string
	since    duration
}

func (a *app) stateWatch() *cobra.Command {
	w := watch{since: duration(time.Hour)}
	c := &cobra.Command{
		Use: "watch KEY", Short: "Watch which versions are still used, until the drain of an old one is at zero", Args: cobra.ExactArgs(1),
		Long: "Show, again and again, how many tokens (or other items) were made and checked under each version of a key, over\n" +
			"all servers of its store and for each of them, and who was seen with an old version within a day and not with the\n" +
			"active one. A version is retired when nobody is left ('claviger key retire', or at the end of its grace).\n" +
			"Rates are of the time between two looks. With --once there are two looks, one interval apart, and one answer.\n" +
			"With --format json each look is one message. --svg draws the tokens that were checked, by minutes, or by hours\n" +
			"where --since is more than six hours ago, anew at every look.",
		Example: "  claviger state watch prod/shop/secret-key\n" +
			"  claviger state watch prod/shop/secret-key --once --since 14d --svg drain.svg",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			return a.watchDrain(c.Context(), s, args[0], w)
		}),
	}
	f := c.Flags()
	f.DurationVar(&w.interval, "interval", 2*time.Second, "between two looks")
	f.BoolVar(&w.once, "once", false, "answer once")
	f.StringVar(&w.svg, "svg", "", "write the picture of the drain to this file")
	f.Var(&w.since, "since", "how far back the picture goes, such as 14d")
	return c
}

func (a *app) watchDrain(ctx context.Context, s *client.Client, key string, w watch) error {
	if w.interval < 100*time.Millisecond {
		return usagef("--interval is at least 100ms")
	}
	var last *pb.DrainResponse
	for {
		req := &pb.DrainRequest{Key: key}
		if w.svg != "" || a.format != "table" {
			req.Since = timestamppb.New(time.Now().Add(-time.Duration(w.since)))
		}
		d, err := s.Drain(ctx, req)
		if err != nil {
			return err
		}
		if w.svg != "" {
			if err := a.write(w.svg, drainSVG(d, time.Duration(w.since))); err != nil {
				return err
			}
		}
		if last != nil || !w.once {
			if err := a.printDrain(d, last, !w.once); err != nil {
				return err
			}
		}
		if last != nil && w.once {
			return nil
		}
		last = d
		if !until(ctx, time.Now().Add(w.interval)) {
			return ctx.Err()
		}
	}
}

// home moves a terminal's cursor to the top and clears what is below.
const home = "\x1b[H\x1b[J"

// printDrain writes one look, with the rates since the one before.
func (a *app) printDrain(d, last *pb.DrainResponse, live bool) error {
	if f, ok := a.stdout.(*os.File); ok && live && a.format == "table" && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(a.stdout, home)
	}
	return a.print(d, func(w io.Writer) {
		row(w, "key", d.Key, "at "+d.At.AsTime().Local().Format(time.TimeOnly))
		row(w)
		row(w, "VERSION", "STATE", "MADE", "CHECKED", "MADE/S", "CHECKED/S", "LAST USE", "RETIRES", "LEFT")
		for _, v := range d.Versions {
			was := versionOf(last, v.Number)
			row(w, v.Number, stateOf(v), v.Made, v.Checked, perSecond(d, last, v.Made, was.GetMade()), perSecond(d, last, v.Checked, was.GetChecked()),
				when(v.Last), when(v.Retires), len(v.Unconfirmed))
			if len(v.Nodes) < 2 {
				continue
			}
			for _, n := range v.Nodes {
				before := nodeOf(was, n.Node)
				row(w, "", "  "+n.Node, n.Made, n.Checked, perSecond(d, last, n.Made, before.GetMade()), perSecond(d, last, n.Checked, before.GetChecked()), when(n.Last), "", "")
			}
		}
		for _, v := range d.Versions {
			if len(v.Unconfirmed) > 0 {
				row(w)
				row(w, fmt.Sprintf("seen with version %d, and not with the active one:", v.Number))
			}
			for _, who := range v.Unconfirmed {
				row(w, "  "+who)
			}
		}
	})
}

// stateOf is a version's state, and whether it is retired.
func stateOf(v *pb.DrainVersion) string {
	if v.Retired != nil {
		return v.State + ", retired"
	}
	return v.State
}

func versionOf(d *pb.DrainResponse, number uint32) *pb.DrainVersion {
	for _, v := range d.GetVersions() {
		if v.Number == number {
			return v
		}
	}
	return nil
}

func nodeOf(v *pb.DrainVersion, name string) *pb.NodeUse {
	for _, n := range v.GetNodes() {
		if n.Node == name {
			return n
		}
	}
	return nil
}

// perSecond is a rate since the look before, "-" at the first.
func perSecond(d, last *pb.DrainResponse, now, before uint64) string {
	if last == nil {
		return "-"
	}
	took := d.At.AsTime().Sub(last.At.AsTime()).Seconds()
	if took <= 0 || now < before {
		return "-"
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(now-before)/took), ".0")
}
