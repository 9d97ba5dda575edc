package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

func (a *app) stateCommand() *cobra.Command {
	return noun("state", "Make and check the cookies and tokens of web frameworks",
		a.stateAdopt(), a.stateAuditApp(), a.stateProtect(), a.stateUnprotect(), a.stateCheck(), a.stateWatch(), a.stateFormats())
}

// stateFlags are shared by the verbs that use a format.
type stateFlags struct {
	useFlags
	format string
	params []string
}

func (s *stateFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.format, "as", "", "format, such as django.session ('claviger state formats')")
	f.StringArrayVar(&s.params, "param", nil, "parameter of the format as name=value, such as name=cart; repeatable")
	f.StringVar(&s.in, "in", "-", "input file, - for standard input")
	f.StringVar(&s.out, "out", "-", "output file")
	f.StringVar(&s.audience, "audience", "", "audience to state; a grant may require it")
	f.StringVar(&s.purpose, "purpose", "", "purpose to state; a grant may require it")
}

// parameters reads name=value pairs by the names that the API has.
func parameters(list []string) (*pb.StateParams, error) {
	out := &pb.StateParams{}
	m := out.ProtoReflect()
	for _, pair := range list {
		name, value, ok := strings.Cut(pair, "=")
		field := m.Descriptor().Fields().ByName(protoreflect.Name(strings.ReplaceAll(name, "-", "_")))
		if !ok || field == nil {
			return nil, usagef("--param is name=value with a parameter such as salt, name or digest, not %q", pair)
		}
		var err error
		switch {
		case field.IsList() && field.Kind() == protoreflect.StringKind:
			m.Mutable(field).List().Append(protoreflect.ValueOfString(value))
		case field.IsList():
			m.Mutable(field).List().Append(protoreflect.ValueOfBytes([]byte(value)))
		case field.Kind() == protoreflect.StringKind:
			m.Set(field, protoreflect.ValueOfString(value))
		case field.Kind() == protoreflect.BytesKind:
			m.Set(field, protoreflect.ValueOfBytes([]byte(value)))
		case field.Kind() == protoreflect.BoolKind:
			var b bool
			b, err = strconv.ParseBool(value)
			m.Set(field, protoreflect.ValueOfBool(b))
		case field.Kind() == protoreflect.Uint32Kind:
			var n uint64
			n, err = strconv.ParseUint(value, 10, 32)
			m.Set(field, protoreflect.ValueOfUint32(uint32(n)))
		default:
			var t time.Time
			t, err = time.Parse(time.RFC3339, value)
			m.Set(field, protoreflect.ValueOfMessage(timestamppb.New(t).ProtoReflect()))
		}
		if err != nil {
			return nil, usagef("the parameter %s cannot be %q", name, value)
		}
	}
	return out, nil
}

func (a *app) stateProtect() *cobra.Command {
	var s stateFlags
	c := &cobra.Command{
		Use: "protect KEY --as FORMAT", Short: "Make a token of a payload", Args: cobra.ExactArgs(1),
		RunE: a.with(func(c *cobra.Command, cl *client.Client, args []string) error {
			params, err := parameters(s.params)
			if err != nil {
				return err
			}
			payload, err := a.read(s.in)
			if err != nil {
				return err
			}
			resp, err := cl.Protect(c.Context(), &pb.ProtectRequest{Key: args[0], Format: s.format, Params: params, Payloads: [][]byte{payload}, Context: s.context()})
			if err != nil {
				return err
			}
			return a.write(s.out, append(resp.Tokens[0], '\n'))
		}),
	}
	s.register(c)
	_ = c.MarkFlagRequired("as")
	return c
}

func (a *app) stateUnprotect() *cobra.Command {
	var s stateFlags
	var expired bool
	c := &cobra.Command{
		Use: "unprotect KEY --as FORMAT", Short: "Check a token and write its payload", Args: cobra.ExactArgs(1),
		Long: "Check a token and write its payload. One that has ended is refused unless --expired is given. Why a token is\n" +
			"refused is not said.",
		RunE: a.with(func(c *cobra.Command, cl *client.Client, args []string) error {
			params, err := parameters(s.params)
			if err != nil {
				return err
			}
			token, err := a.read(s.in)
			if err != nil {
				return err
			}
			resp, err := cl.Unprotect(c.Context(), &pb.UnprotectRequest{
				Key: args[0], Format: s.format, Params: params, Tokens: [][]byte{bytes.TrimRight(token, "\r\n")}, Expired: expired, Context: s.context(),
			})
			if err != nil {
				return err
			}
			if !resp.Items[0].Ok {
				a.say("the token is not valid")
				return exitError(3)
			}
			return a.write(s.out, resp.Items[0].Payload)
		}),
	}
	s.register(c)
	_ = c.MarkFlagRequired("as")
	c.Flags().BoolVar(&expired, "expired", false, "open a token that has ended too")
	return c
}

func (a *app) stateCheck() *cobra.Command {
	var s stateFlags
	c := &cobra.Command{
		Use: "check KEY", Short: "Say what a token is: its format, version, purpose and age", Args: cobra.ExactArgs(1),
		Long: "Try a token under every format of the key's recipe set, or under the one given, and say what it is. The payload\n" +
			"is not shown. A format whose parameters are not the framework's defaults needs them by --param.",
		RunE: a.with(func(c *cobra.Command, cl *client.Client, args []string) error {
			params, err := parameters(append(s.params, "any_purpose=true"))
			if err != nil {
				return err
			}
			token, err := a.read(s.in)
			if err != nil {
				return err
			}
			key, err := cl.GetKey(c.Context(), args[0])
			if err != nil {
				return err
			}
			for _, f := range formatsOf(key.Recipe, s.format) {
				resp, err := cl.Unprotect(c.Context(), &pb.UnprotectRequest{
					Key: args[0], Format: string(f), Params: params, Tokens: [][]byte{bytes.TrimRight(token, "\r\n")}, Expired: true, Context: s.context(),
				})
				if errors.Is(err, claviger.Invalid) || err != nil && claviger.CodeOf(err) == claviger.Denied && s.format == "" {
					continue // it needs parameters that were not given
				}
				if err != nil {
					return err
				}
				if u := resp.Items[0]; u.Ok {
					return a.printToken(key, f, u)
				}
			}
			a.say("the token is not valid under this key, or its format needs parameters")
			return exitError(3)
		}),
	}
	s.register(c)
	return c
}

// printToken says what a token is, without what is in it.
func (a *app) printToken(key *pb.Key, f state.Format, u *pb.Unprotected) error {
	u.Payload = nil
	return a.print(u, func(w io.Writer) {
		fmt.Fprintf(w, "format\t%s\nkey\t%s\nversion\t%d\n", f, key.Name, u.Version)
		for _, line := range []struct {
			name string
			at   *timestamppb.Timestamp
		}{{"issued", u.Issued}, {"expires", u.Expires}} {
			if line.at != nil {
				fmt.Fprintf(w, "%s\t%s\n", line.name, when(line.at))
			}
		}
		for _, line := range [][2]string{{"purpose", u.Purpose}, {"key id", u.KeyId}} {
			if line[1] != "" {
				fmt.Fprintf(w, "%s\t%q\n", line[0], line[1])
			}
		}
	})
}

// formatsOf returns the formats of a recipe set, or the one that was named.
func formatsOf(set, named string) []state.Format {
	if named != "" {
		return []state.Format{state.Format(named)}
	}
	return slices.DeleteFunc(state.Formats(), func(f state.Format) bool { return !slices.Contains(f.Sets(), recipe.Set(set)) })
}

func (a *app) stateFormats() *cobra.Command {
	return &cobra.Command{
		Use: "formats", Short: "List the formats and the recipe sets that make them", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			for _, f := range state.Formats() {
				var sets []string
				for _, set := range f.Sets() {
					sets = append(sets, string(set))
				}
				fmt.Fprintf(a.stdout, "%-28s %s\n", f, strings.Join(sets, ", "))
			}
			return nil
		},
	}
}
