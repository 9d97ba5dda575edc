package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// maxInput is the most that a command reads from a file or standard input, in bytes.
const maxInput = 1 << 20

// print writes a message in the chosen format; table writes it for people.
func (a *app) print(m proto.Message, table func(w io.Writer)) error {
	if a.format == "table" {
		w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
		table(w)
		return w.Flush()
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err
	}
	return a.printJSON(text)
}

// printJSON writes JSON text as JSON or YAML.
func (a *app) printJSON(text []byte) error {
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return err
	}
	if a.format == "yaml" {
		return yaml.NewEncoder(a.stdout).Encode(v)
	}
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// read returns the content of a file, or of standard input for "-", up to maxInput bytes.
func (a *app) read(name string) ([]byte, error) { return a.readUpTo(name, maxInput) }

func (a *app) readUpTo(name string, most int64) ([]byte, error) {
	from := a.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, most+1))
	if err == nil && int64(len(data)) > most {
		err = &usageError{fmt.Sprintf("%s is larger than %d bytes", name, most), "hash it yourself and sign the digest with --prehashed, where the key's algorithm has a hash"}
	}
	return data, err
}

// write puts data into a new or replaced file that only the user can read, or
// on standard output for "-".
func (a *app) write(name string, data []byte) error {
	if name == "-" {
		_, err := a.stdout.Write(data)
		return err
	}
	return os.WriteFile(name, data, 0o600)
}

// duration is a flag value: a Go duration, or days such as "90d".
type duration time.Duration

// String implements pflag.Value.
func (d *duration) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

// Set implements pflag.Value.
func (d *duration) Set(s string) error {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		*d = duration(time.Duration(n) * 24 * time.Hour)
		return err
	}
	v, err := time.ParseDuration(s)
	*d = duration(v)
	return err
}

// Type implements pflag.Value.
func (d *duration) Type() string { return "duration" }

func (d duration) proto() *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(time.Duration(d))
}

// moment is a flag value: RFC 3339, or a duration from now.
type moment struct{ at time.Time }

// String implements pflag.Value.
func (m *moment) String() string {
	if m.at.IsZero() {
		return ""
	}
	return m.at.Format(time.RFC3339)
}

// Set implements pflag.Value.
func (m *moment) Set(s string) error {
	var d duration
	if d.Set(s) == nil {
		m.at = time.Now().Add(time.Duration(d))
		return nil
	}
	var err error
	m.at, err = time.Parse(time.RFC3339, s)
	return err
}

// Type implements pflag.Value.
func (m *moment) Type() string { return "time" }

func (m moment) proto() *timestamppb.Timestamp {
	if m.at.IsZero() {
		return nil
	}
	return timestamppb.New(m.at)
}

// when writes a time for people, "-" for none.
func when(t *timestamppb.Timestamp) string {
	if t == nil || t.AsTime().Unix() <= 0 {
		return "-"
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05")
}

// span writes a duration for people, "-" for none; whole days as days.
func span(d *durationpb.Duration) string {
	v := d.AsDuration()
	switch {
	case v == 0:
		return "-"
	case v%(24*time.Hour) == 0:
		return fmt.Sprintf("%dd", v/(24*time.Hour))
	}
	return v.String()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// row writes one row of a table.
func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, c)
	}
	fmt.Fprintln(w)
}

// say writes talk, which is never data, to standard error.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }
