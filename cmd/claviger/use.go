package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
)

// useFlags are shared by the verbs that use a key.
type useFlags struct {
	in, out           string
	audience, purpose string
	encoding          string // of the output or of the value that is checked: base64, hex, raw
	signature         string // asn1 or p1363
	value             string // file of the signature, MAC or associated data
	prehashed         bool
	version           uint32
}

func (u *useFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&u.in, "in", "-", "input file, - for standard input; at most 1 MiB")
	f.StringVar(&u.audience, "audience", "", "audience to state; a grant may require it")
	f.StringVar(&u.purpose, "purpose", "", "purpose to state; a grant may require it")
	f.StringVar(&u.encoding, "encoding", "base64", "base64, hex or raw")
}

func (u *useFlags) context() *pb.Context {
	return &pb.Context{Audience: u.audience, Purpose: u.purpose}
}

func (u *useFlags) signatureEncoding() (pb.SignatureEncoding, error) {
	switch u.signature {
	case "", "asn1":
		return pb.SignatureEncoding_SIGNATURE_ENCODING_ASN1, nil
	case "p1363":
		return pb.SignatureEncoding_SIGNATURE_ENCODING_P1363, nil
	}
	return 0, usagef("--signature is asn1 or p1363, not %q", u.signature)
}

func (u *useFlags) encode(b []byte) ([]byte, error) {
	switch u.encoding {
	case "base64":
		return []byte(base64.StdEncoding.EncodeToString(b) + "\n"), nil
	case "hex":
		return []byte(hex.EncodeToString(b) + "\n"), nil
	case "raw":
		return b, nil
	}
	return nil, usagef("--encoding is base64, hex or raw, not %q", u.encoding)
}

func (u *useFlags) decode(b []byte) ([]byte, error) {
	switch u.encoding {
	case "base64":
		return base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	case "hex":
		return hex.DecodeString(strings.TrimSpace(string(b)))
	case "raw":
		return b, nil
	}
	return nil, usagef("--encoding is base64, hex or raw, not %q", u.encoding)
}

// emit writes one result to --out in the chosen encoding.
func (a *app) emit(u *useFlags, b []byte) error {
	text, err := u.encode(b)
	if err != nil {
		return err
	}
	return a.write(u.out, text)
}

func (a *app) keySign() *cobra.Command {
	var u useFlags
	var jwt, x509, ssh bool
	var jwtType string
	c := &cobra.Command{
		Use: "sign KEY", Short: "Sign a message, or a JWT or certificate that a grant's template allows", Args: cobra.ExactArgs(1),
		Example: "  claviger key sign prod/billing/receipts --in receipt.json --out receipt.sig --encoding raw\n" +
			"  claviger key sign prod/billing/tokens --jwt --in claims.json",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			input, err := a.read(u.in)
			if err != nil {
				return err
			}
			if jwt || x509 || ssh {
				req := &pb.SignStructuredRequest{Key: args[0], Context: u.context()}
				switch {
				case jwt:
					req.Structure = &pb.SignStructuredRequest_Jwt{Jwt: &pb.Jwt{Claims: input, Type: jwtType}}
				case x509:
					req.Structure = &pb.SignStructuredRequest_X509Tbs{X509Tbs: input}
				default:
					req.Structure = &pb.SignStructuredRequest_SshTbs{SshTbs: input}
				}
				resp, err := s.SignStructured(c.Context(), req)
				if err != nil {
					return err
				}
				if jwt {
					return a.write(u.out, append(resp.Signed, '\n'))
				}
				return a.emit(&u, resp.Signed)
			}
			enc, err := u.signatureEncoding()
			if err != nil {
				return err
			}
			resp, err := s.Sign(c.Context(), &pb.SignRequest{
				Key: args[0], Inputs: [][]byte{input}, Prehashed: u.prehashed, Encoding: enc, Context: u.context(),
			})
			if err != nil {
				return err
			}
			a.say("signed with version %d", resp.Version)
			return a.emit(&u, resp.Signatures[0])
		}),
	}
	u.register(c)
	f := c.Flags()
	f.StringVar(&u.out, "out", "-", "output file")
	f.StringVar(&u.signature, "signature", "asn1", "form of an ECDSA signature: asn1 or p1363")
	f.BoolVar(&u.prehashed, "prehashed", false, "the input is a digest by the key's hash")
	f.BoolVar(&jwt, "jwt", false, "the input is the claims of a JWT")
	f.StringVar(&jwtType, "jwt-type", "", "header typ of the JWT; the template's when left out")
	f.BoolVar(&x509, "x509", false, "the input is a TBSCertificate, DER")
	f.BoolVar(&ssh, "ssh", false, "the input is an OpenSSH certificate in wire form, without its signature")
	c.MarkFlagsMutuallyExclusive("jwt", "x509", "ssh", "prehashed")
	return c
}

// verdict prints the outcome of a check and is the exit status.
func (a *app) verdict(what string, v *pb.Verdict) error {
	if !v.GetValid() {
		a.say("%s is NOT valid", what)
		return exitError(3)
	}
	fmt.Fprintf(a.stdout, "%s is valid, version %d\n", what, v.Version)
	return nil
}

func (a *app) keyVerify() *cobra.Command {
	var u useFlags
	c := &cobra.Command{
		Use: "verify KEY --signature-file FILE", Short: "Check a signature", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			input, value, err := a.pair(&u)
			if err != nil {
				return err
			}
			enc, err := u.signatureEncoding()
			if err != nil {
				return err
			}
			resp, err := s.Verify(c.Context(), &pb.VerifyRequest{
				Key: args[0], Prehashed: u.prehashed, Encoding: enc, Context: u.context(),
				Items: []*pb.Signed{{Input: input, Signature: value, Version: u.version}},
			})
			if err != nil {
				return err
			}
			return a.verdict("the signature", resp.Verdicts[0])
		}),
	}
	u.register(c)
	f := c.Flags()
	f.StringVar(&u.value, "signature-file", "", "file of the signature, in --encoding")
	f.StringVar(&u.signature, "signature", "asn1", "form of an ECDSA signature: asn1 or p1363")
	f.BoolVar(&u.prehashed, "prehashed", false, "the input is a digest by the key's hash")
	f.Uint32Var(&u.version, "version", 0, "only this version")
	_ = c.MarkFlagRequired("signature-file")
	return c
}

// pair reads the input and the value that is checked against it.
func (a *app) pair(u *useFlags) (input, value []byte, err error) {
	if input, err = a.read(u.in); err != nil {
		return nil, nil, err
	}
	text, err := a.read(u.value)
	if err != nil {
		return nil, nil, err
	}
	value, err = u.decode(text)
	return input, value, err
}

func (a *app) keyMAC() *cobra.Command {
	var u useFlags
	c := &cobra.Command{
		Use: "mac KEY", Short: "Make a message authentication code", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			input, err := a.read(u.in)
			if err != nil {
				return err
			}
			resp, err := s.MAC(c.Context(), &pb.MacRequest{Key: args[0], Inputs: [][]byte{input}, Context: u.context()})
			if err != nil {
				return err
			}
			return a.emit(&u, resp.Macs[0])
		}),
	}
	u.register(c)
	c.Flags().StringVar(&u.out, "out", "-", "output file")
	return c
}

func (a *app) keyVerifyMAC() *cobra.Command {
	var u useFlags
	c := &cobra.Command{
		Use: "verify-mac KEY --mac-file FILE", Short: "Check a message authentication code", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			input, value, err := a.pair(&u)
			if err != nil {
				return err
			}
			resp, err := s.VerifyMAC(c.Context(), &pb.VerifyMacRequest{
				Key: args[0], Items: []*pb.Maced{{Input: input, Mac: value, Version: u.version}}, Context: u.context(),
			})
			if err != nil {
				return err
			}
			return a.verdict("the MAC", resp.Verdicts[0])
		}),
	}
	u.register(c)
	c.Flags().StringVar(&u.value, "mac-file", "", "file of the MAC, in --encoding")
	c.Flags().Uint32Var(&u.version, "version", 0, "only this version")
	_ = c.MarkFlagRequired("mac-file")
	return c
}

func (a *app) keySeal() *cobra.Command {
	var u useFlags
	c := &cobra.Command{
		Use: "seal KEY", Short: "Encrypt and authenticate (AES-256-GCM)", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			input, ad, err := a.withAssociated(&u)
			if err != nil {
				return err
			}
			resp, err := s.Seal(c.Context(), &pb.SealRequest{
				Key: args[0], Items: []*pb.Plain{{Plaintext: input, AssociatedData: ad}}, Context: u.context(),
			})
			if err != nil {
				return err
			}
			return a.emit(&u, resp.Sealed[0])
		}),
	}
	u.register(c)
	c.Flags().StringVar(&u.out, "out", "-", "output file")
	c.Flags().StringVar(&u.value, "associated-data", "", "file of data that is authenticated and not encrypted")
	return c
}

func (a *app) withAssociated(u *useFlags) (input, ad []byte, err error) {
	if u.value != "" {
		if ad, err = a.read(u.value); err != nil {
			return nil, nil, err
		}
	}
	input, err = a.readUpTo(u.in, 2*maxInput) // base64 of the largest sealed text fits
	return input, ad, err
}

func (a *app) keyOpen() *cobra.Command {
	var u useFlags
	c := &cobra.Command{
		Use: "open KEY", Short: "Open what was sealed", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			text, ad, err := a.withAssociated(&u)
			if err != nil {
				return err
			}
			sealed, err := u.decode(text)
			if err != nil {
				return err
			}
			resp, err := s.Open(c.Context(), &pb.OpenRequest{
				Key: args[0], Items: []*pb.Sealed{{Sealed: sealed, AssociatedData: ad}}, Context: u.context(),
			})
			if err != nil {
				return err
			}
			if !resp.Items[0].Ok {
				a.say("not authentic: it was altered, or sealed by another key or with other associated data")
				return exitError(3)
			}
			return a.write(u.out, resp.Items[0].Plaintext)
		}),
	}
	u.register(c)
	c.Flags().StringVar(&u.out, "out", "-", "output file")
	c.Flags().StringVar(&u.value, "associated-data", "", "file of the data that was authenticated with it")
	return c
}
