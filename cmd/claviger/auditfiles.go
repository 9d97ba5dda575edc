package main

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/segment"
	"claviger.dev/pubkey"
)

// auditLine prints one record for people.
func (a *app) auditLine(raw []byte) error {
	line, err := audit.Decode(raw)
	if err != nil {
		return err
	}
	r := line.Record
	what := dash(cmp.Or(string(r.Key), r.Detail["principal"]))
	if r.Version > 0 {
		what += fmt.Sprintf("#%d", r.Version)
	}
	if r.Count > 1 {
		what += fmt.Sprintf(" x%d", r.Count)
	}
	why := string(r.Code)
	if r.Reason != "" {
		why += " " + r.Reason
	}
	w := tabwriter.NewWriter(a.stdout, 18, 0, 2, ' ', 0)
	row(w, r.Time.Local().Format("2006-01-02 15:04:05.000"), r.Outcome, r.Action, dash(r.PrincipalName), what, why)
	return w.Flush()
}

// verifyAudit asks the server, or reads the files of dir itself.
func (a *app) verifyAudit(c *cobra.Command, dir, public string, req *pb.VerifyAuditRequest) (*pb.VerifyAuditResponse, error) {
	if dir == "" {
		s, err := a.dial(c.Context())
		if err != nil {
			return nil, err
		}
		return s.VerifyAudit(c.Context(), req)
	}
	var opts audit.VerifyOptions
	if len(req.Checkpoint) > 0 {
		kept, err := audit.ParseCheckpoint(req.Checkpoint)
		if err != nil {
			return nil, err
		}
		opts.Checkpoints = append(opts.Checkpoints, kept)
	}
	if public != "" {
		key, err := a.checkpointKey(public)
		if err != nil {
			return nil, err
		}
		opts.CheckSignature = func(c audit.Checkpoint) error {
			if c.Fingerprint != key.Fingerprint() || !key.Verify(c.Statement(), c.Signature, pubkey.ASN1) {
				return errors.New("the checkpoint is not signed by this key")
			}
			return nil
		}
	}
	report, err := segment.VerifyFiles(c.Context(), dir, opts)
	if err != nil {
		return nil, err
	}
	resp := &pb.VerifyAuditResponse{Ok: len(report.Faults) == 0, Records: report.Records, Checkpoints: report.Checkpoints}
	for _, f := range report.Faults {
		detail := f.Detail
		if f.Last > f.Seq {
			detail = fmt.Sprintf("to record %d: %s", f.Last, detail)
		}
		resp.Faults = append(resp.Faults, &pb.AuditFault{Writer: f.Writer, Seq: f.Seq, Kind: string(f.Kind), Detail: detail})
	}
	return resp, nil
}

func (a *app) checkpointKey(name string) (pubkey.Key, error) {
	text, err := a.read(name)
	if err != nil {
		return pubkey.Key{}, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return pubkey.Key{}, usagef("%s is not PEM", name)
	}
	std, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return pubkey.Key{}, err
	}
	key, err := pubkey.FromStd(claviger.Ed25519, std)
	if err != nil {
		return key, usagef("%s holds no Ed25519 key: 'claviger server checkpoint-key' prints the one that signs checkpoints", name)
	}
	return key, nil
}
