package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "claviger.dev/api/claviger/v1"
)

// draining is a drain over two days: version 2 came in the middle, and version 1
// runs dry and is retired.
func draining() *pb.DrainResponse {
	at := time.Date(2026, 3, 3, 12, 0, 0, 0, time.UTC)
	d := &pb.DrainResponse{Key: `prod/shop/<secret>&"key"`, At: timestamppb.New(at), Versions: []*pb.DrainVersion{
		{Number: 1, State: "deactivated", Retired: timestamppb.New(at.Add(-2 * time.Hour))},
		{Number: 2, State: "active", Activated: timestamppb.New(at.Add(-24 * time.Hour))},
	}}
	for i := range 48 {
		hour := at.Add(time.Duration(i-48) * time.Hour)
		flow := func(version uint32, n uint64) {
			d.Flows = append(d.Flows, &pb.Flow{At: timestamppb.New(hour), Width: durationpb.New(time.Hour), Version: version, Node: "a", Checked: n})
		}
		if i < 24 {
			flow(1, uint64(1800+37*(i%7)))
			continue
		}
		flow(1, uint64(max(0, 1700-90*(i-24))))
		flow(2, uint64(1800-max(0, 1700-90*(i-24))+20*(i%5)))
	}
	return d
}

// TestDrainSVG draws a picture that is well-formed, names every version, has
// none of the key's name as markup, and keeps every point within the plot.
func TestDrainSVG(t *testing.T) {
	t.Parallel()
	picture := drainSVG(draining(), 48*time.Hour)
	dec, paths := xml.NewDecoder(strings.NewReader(string(picture))), 0
	var text strings.Builder
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if tok.Name.Local == "secret" || tok.Name.Local == "script" {
				t.Errorf("an element <%s>", tok.Name.Local)
			}
			if tok.Name.Local == "path" {
				paths++
			}
		case xml.CharData:
			text.Write(append(tok, '\n'))
		}
	}
	if paths != 2 {
		t.Errorf("%d curves, want one for each of 2 versions", paths)
	}
	for _, want := range []string{`prod/shop/<secret>&"key"`, "version 1 retired", "version 2", "checked per hour", "2 Mar", "2k", "last 0", "last 1.8k"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the picture does not say %q:\n%s", want, text.String())
		}
	}
	if strings.Contains(string(picture), "NaN") || strings.Contains(string(picture), "Inf") {
		t.Error("a number is none")
	}
	// Nothing was seen: a picture all the same.
	empty := drainSVG(&pb.DrainResponse{Key: "prod/a/b", At: timestamppb.New(time.Unix(1e9, 0)), Versions: []*pb.DrainVersion{{Number: 1, State: "active"}}}, time.Hour)
	if strings.Contains(string(empty), "NaN") || !strings.Contains(string(empty), "checked per minute") {
		t.Errorf("an empty picture:\n%s", empty)
	}
}
