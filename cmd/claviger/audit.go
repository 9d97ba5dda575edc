package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

func (a *app) auditCommand() *cobra.Command {
	return noun("audit", "Read and check the record", a.auditTail(), a.auditExport(), a.auditVerify(), a.auditCheckpoint())
}

// queryFlags choose records.
type queryFlags struct {
	since, until moment
	req          pb.QueryRequest
}

func (q *queryFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.Var(&q.since, "since", "RFC 3339")
	f.Var(&q.until, "until", "RFC 3339")
	f.StringVar(&q.req.Key, "key", "", "only records of this key")
	f.StringVar(&q.req.Principal, "principal", "", "only records of this principal")
	f.StringVar(&q.req.Session, "session", "", "only records of the session with this id")
	f.StringVar(&q.req.Action, "action", "", "such as use.sign, or key. for all below it")
	f.StringVar(&q.req.Outcome, "outcome", "", "allowed, denied or failed")
}

// stream runs the query and gives each record to visit.
func (a *app) stream(c *cobra.Command, q *queryFlags, visit func(*pb.AuditRecord) error) error {
	q.req.Since, q.req.Until = q.since.proto(), q.until.proto()
	s, err := a.dial(c.Context())
	if err != nil {
		return err
	}
	for record, err := range s.Audit(c.Context(), &q.req) {
		if c.Context().Err() != nil {
			return nil // the user has seen enough
		}
		if err != nil {
			return err
		}
		if err := visit(record); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) auditTail() *cobra.Command {
	var q queryFlags
	c := &cobra.Command{
		Use: "tail", Short: "Show the newest records, and wait for more with --follow", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.stream(c, &q, func(r *pb.AuditRecord) error {
				if a.format != "table" {
					_, err := fmt.Fprintf(a.stdout, "%s\n", bytes.TrimSpace(r.Line))
					return err
				}
				return a.auditLine(r.Line)
			})
		},
	}
	q.register(c)
	c.Flags().Uint32Var(&q.req.Last, "last", 20, "how many of the newest records")
	c.Flags().BoolVar(&q.req.Follow, "follow", false, "wait for more")
	return c
}

func (a *app) auditExport() *cobra.Command {
	var q queryFlags
	var out string
	c := &cobra.Command{
		Use: "export", Short: "Write records as JSON Lines, as stored or as OCSF", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			w := a.stdout
			if out != "-" {
				f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if err != nil {
					return err
				}
				defer func() {
					if cerr := f.Close(); err == nil {
						err = cerr
					}
				}()
				w = f
			}
			count, progress := 0, time.Now()
			err = a.stream(c, &q, func(r *pb.AuditRecord) error {
				if count++; time.Since(progress) > time.Second && a.interactive() {
					progress = time.Now()
					fmt.Fprintf(a.stderr, "\r%d records", count)
				}
				_, err := fmt.Fprintf(w, "%s\n", bytes.TrimSpace(r.Line))
				return err
			})
			if err == nil {
				a.say("%d records", count)
			}
			return err
		},
	}
	q.register(c)
	c.Flags().StringVar(&q.req.Format, "as", "json", "json (as stored) or ocsf")
	c.Flags().StringVar(&out, "out", "-", "new file")
	return c
}

func (a *app) auditVerify() *cobra.Command {
	var checkpoint, dir, public string
	c := &cobra.Command{
		Use: "verify", Short: "Check the whole record, and name each record that was removed, altered or reordered", Args: cobra.NoArgs,
		Long: "Check the chain, every checkpoint in it and, with --checkpoint, one that was kept elsewhere: only such a\n" +
			"checkpoint shows a cut tail or a directory that was rolled back. With --dir the files are read without a\n" +
			"server, and --public-key checks the checkpoints' signatures.",
		RunE: func(c *cobra.Command, _ []string) error {
			req := &pb.VerifyAuditRequest{}
			if checkpoint != "" {
				text, err := a.read(checkpoint)
				if err != nil {
					return err
				}
				req.Checkpoint = text
			}
			resp, err := a.verifyAudit(c, dir, public, req)
			if err != nil {
				return err
			}
			err = a.print(resp, func(w io.Writer) {
				row(w, "records", resp.Records)
				row(w, "checkpoints", resp.Checkpoints)
				row(w, "verdict", map[bool]string{true: "whole", false: "NOT whole"}[resp.Ok])
				for _, f := range resp.Faults {
					row(w, f.Kind, "writer "+f.Writer+" record "+strconv.FormatUint(f.Seq, 10), f.Detail)
				}
			})
			if err == nil && !resp.Ok {
				err = exitError(2)
			}
			return err
		},
	}
	c.Flags().StringVar(&checkpoint, "checkpoint", "", "file of a checkpoint that was kept elsewhere")
	c.Flags().StringVar(&dir, "dir", "", "read this audit directory instead of asking a server")
	c.Flags().StringVar(&public, "public-key", "", "with --dir: PEM file of the key that signs checkpoints")
	return c
}

func (a *app) auditCheckpoint() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "checkpoint", Short: "Sign the present head of the record, to be kept elsewhere", Args: cobra.NoArgs,
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.Checkpoint(c.Context())
			if err != nil {
				return err
			}
			return a.write(out, append(bytes.TrimSpace(resp.Checkpoint), '\n'))
		}),
	}
	c.Flags().StringVar(&out, "out", "-", "file")
	return c
}
