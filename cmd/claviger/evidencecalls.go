package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/hunt"
	"claviger.dev/pubkey"
)

// wholeServer are methods that take no argument and act on the whole server, so
// that no call of them is without effect.
const wholeServer = "Rewrap RecoveryShares"

// methods are those of the whole API that answer once, as it is described; a
// new one is among them.
func methods() (all []protoreflect.MethodDescriptor) {
	protoregistry.GlobalFiles.RangeFilesByPackage(pb.File_claviger_v1_keys_proto.Package(), func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			list := file.Services().Get(i).Methods()
			for j := range list.Len() {
				if m := list.Get(j); !m.IsStreamingServer() && !strings.Contains(wholeServer, string(m.Name())) {
					all = append(all, m)
				}
			}
		}
		return true
	})
	return all
}

// hostile fills a message with what no method is made for: every string is the
// reference, every sequence of bytes is of zeros.
func hostile(of protoreflect.MessageDescriptor, ref string) *dynamicpb.Message {
	m := dynamicpb.NewMessage(of)
	for i := range of.Fields().Len() {
		f := of.Fields().Get(i)
		var v protoreflect.Value
		switch f.Kind() {
		case protoreflect.StringKind:
			v = protoreflect.ValueOfString(ref)
		case protoreflect.BytesKind:
			v = protoreflect.ValueOfBytes(make([]byte, 32))
		case protoreflect.BoolKind:
			v = protoreflect.ValueOfBool(true)
		case protoreflect.Uint32Kind:
			v = protoreflect.ValueOfUint32(1)
		case protoreflect.Uint64Kind:
			v = protoreflect.ValueOfUint64(1)
		default:
			continue // parts of what is refused already
		}
		switch {
		case f.IsList():
			m.Mutable(f).List().Append(v)
		case !f.IsMap():
			m.Set(f, v)
		}
	}
	return m
}

// askHostilely calls every method with what none is made for, and those that
// take a key for each version. None can change anything: the name is none.
func (r *evidenceRun) askHostilely(ctx context.Context, c *client.Client, _ *listener) error {
	all := methods()
	for i, k := range r.keys {
		if i == maxHostile {
			r.run.Scope = append(r.run.Scope, fmt.Sprintf("the API: hostile arguments for %d of %d versions", i, len(r.keys)))
			break
		}
		refs := []string{k.key.Name + "?format=pkcs8&export=true", k.key.Name + "/../../private", k.key.Id + "#" + k.version.Fingerprint}
		for _, m := range all {
			if i > 0 && m.Input().Fields().ByName("key") == nil {
				continue
			}
			procedure := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
			if err := r.pace.patiently(ctx, func() error { return c.Call(ctx, procedure, hostile(m.Input(), refs[i%len(refs)])) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// own is how the key that a run makes for itself is called in its search.
const own = "made for this run"

// askOwn calls the methods that change the server, on a key, a grant and a
// principal that this run makes and does away with. Their records stay.
func (r *evidenceRun) askOwn(ctx context.Context, c *client.Client, _ *listener) error {
	if !r.changes {
		return nil
	}
	env, _, _ := strings.Cut(r.keys[0].key.Name, "/")
	name := env + "/claviger-evidence/" + string(r.run.ID)
	made, err := c.CreateKey(ctx, &pb.CreateKeyRequest{Name: name, Algorithm: string(claviger.ECDSAP256), Custodian: string(claviger.Soft), ForImport: true})
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	const why = "made by 'claviger evidence run --changes' for itself"
	// Each call is made whatever came of the one before, so that what was made is
	// done away with; what a method refuses is an answer too.
	ask := func(call func() error) {
		if e := call(); err == nil {
			err = e
		}
	}
	ask(func() error {
		pin, err := r.a.pin("")
		if err == nil {
			_, err = c.Import(ctx, name, der, pin, why)
		}
		return err
	})
	ask(func() error {
		_, err := c.Sign(ctx, &pb.SignRequest{Key: name, Inputs: [][]byte{[]byte(why)}})
		return err
	})
	for _, call := range []func() (*pb.Key, error){
		func() (*pb.Key, error) { return c.RotateKey(ctx, &pb.RotateKeyRequest{Key: made.Id, Reason: why}) },
		func() (*pb.Key, error) { return askDrain(ctx, c, made, why) },
		func() (*pb.Key, error) {
			return c.RenameKey(ctx, &pb.RenameKeyRequest{Key: made.Id, Name: name + "-renamed"})
		},
		func() (*pb.Key, error) {
			return c.UpdateKey(ctx, &pb.UpdateKeyRequest{Key: made.Id, Revision: made.Revision, SetLabels: true, Labels: map[string]string{"by": "evidence"}})
		},
	} {
		ask(func() error {
			k, err := call()
			if err == nil {
				made = k
			}
			return err
		})
	}
	ask(func() error { return r.askOwnPrincipal(ctx, c, name, why) })
	for _, v := range made.Versions {
		public, e := pubkey.Parse(claviger.ECDSAP256, v.Public)
		if e == nil {
			r.made = append(r.made, hunt.Key{Name: own, Public: public})
		}
		for _, s := range []claviger.State{claviger.Deactivated, claviger.Destroyed} {
			if string(s) == v.State {
				continue
			}
			ask(func() error {
				_, err := c.ChangeState(ctx, &pb.ChangeStateRequest{Key: made.Id, Version: v.Number, State: string(s), Reason: why, Force: true})
				return err
			})
		}
	}
	return err
}

// askDrain retires the first version of a key, and asks what an exposure of the
// other one would come to.
func askDrain(ctx context.Context, c *client.Client, made *pb.Key, why string) (*pb.Key, error) {
	if _, err := c.Drain(ctx, &pb.DrainRequest{Key: made.Id, Since: made.Created}); err != nil {
		return nil, err
	}
	if _, err := c.RetireVersion(ctx, &pb.RetireVersionRequest{Key: made.Id, Version: 1, Reason: why, Force: true}); err != nil {
		return nil, err
	}
	x, err := c.ExposeKey(ctx, &pb.ExposeKeyRequest{Key: made.Id, Since: made.Created, Reason: why, DryRun: true})
	return x.GetKey(), err
}

// askOwnPrincipal makes a principal with a grant and a code, and revokes them.
func (r *evidenceRun) askOwnPrincipal(ctx context.Context, c *client.Client, key, why string) error {
	name := "claviger-evidence-" + string(r.run.ID)
	env, _, _ := strings.Cut(key, "/")
	if _, err := c.CreatePrincipal(ctx, &pb.CreatePrincipalRequest{Name: name, Kind: string(claviger.Workload), Environments: []string{env}}); err != nil {
		return err
	}
	grant, err := c.CreateGrant(ctx, &pb.CreateGrantRequest{Principal: name, Selector: key, Operations: []string{string(claviger.Sign)}, Reason: why})
	if err == nil {
		_, err = c.GetGrant(ctx, &pb.GetGrantRequest{Id: grant.Id})
	}
	if err == nil {
		_, err = c.RevokeGrant(ctx, &pb.RevokeGrantRequest{Id: grant.Id, Reason: why})
	}
	if err == nil {
		_, err = c.IssueCode(ctx, &pb.IssueCodeRequest{Principal: name})
	}
	_, gone := c.RevokePrincipal(ctx, &pb.RevokePrincipalRequest{Principal: name, Reason: why})
	if err != nil {
		return err
	}
	return gone
}
