package appsecret

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"claviger.dev"
	"claviger.dev/internal/recipe"
	"claviger.dev/internal/state"
)

// maxRingFile bounds one file of a ring, in bytes.
const maxRingFile = 64 << 10

// ringKey is a key-*.xml of ASP.NET Core Data Protection.
type ringKey struct {
	ID         string    `xml:"id,attr"`
	Created    time.Time `xml:"creationDate"`
	Activates  time.Time `xml:"activationDate"`
	Expires    time.Time `xml:"expirationDate"`
	Descriptor struct {
		Inner struct {
			Encryption struct {
				Algorithm string `xml:"algorithm,attr"`
			} `xml:"encryption"`
			Validation struct {
				Algorithm string `xml:"algorithm,attr"`
			} `xml:"validation"`
			Master struct {
				Value string `xml:"value"`
			} `xml:"masterKey"`
			Encrypted encryptedSecret `xml:"encryptedSecret"`
		} `xml:"descriptor"`
		Encrypted encryptedSecret `xml:"encryptedSecret"`
	} `xml:"descriptor"`

	file string
}

type encryptedSecret struct {
	Decryptor string `xml:"decryptorType,attr"`
}

// revocation is a revocation-*.xml: of one key, or with the id "*" of all that
// were made before its date.
type revocation struct {
	Date time.Time `xml:"revocationDate"`
	Key  struct {
		ID string `xml:"id,attr"`
	} `xml:"key"`
}

// readRing reads a key ring. Keys that are revoked are left out: the framework
// does not take what they made.
func readRing(src Source, want Choice) (*Found, error) {
	if want.Set != "" && want.Set != recipe.DataProtection {
		return nil, claviger.Errorf(claviger.Invalid, "a key ring is for the recipe set dataprotection", "leave out --set")
	}
	f := &Found{Kind: KeyRing, Encoding: "UTF-8", Set: recipe.DataProtection}
	keys, revoked, err := readRingFiles(src.Ring)
	if err != nil {
		return nil, err
	}
	keys = slices.DeleteFunc(keys, func(k ringKey) bool {
		gone := slices.ContainsFunc(revoked, func(r revocation) bool {
			return strings.EqualFold(r.Key.ID, k.ID) || r.Key.ID == "*" && k.Created.Before(r.Date)
		})
		if gone {
			f.Notes = append(f.Notes, k.file+" is revoked, and not adopted")
		}
		return gone
	})
	if len(keys) == 0 {
		return nil, claviger.Errorf(claviger.NotFound, "the directory has no key of a ring that is in use", "give the directory that has key-*.xml, such as ~/.aspnet/DataProtection-Keys")
	}
	slices.SortFunc(keys, func(a, b ringKey) int {
		if c := a.Activates.Compare(b.Activates); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	now := src.Now.Add(5 * time.Minute) // the framework's clock skew
	active := -1
	for i, k := range keys {
		if !k.Activates.After(now) && src.Now.Before(k.Expires) {
			active = i
		}
	}
	if active < 0 {
		active = len(keys) - 1
		f.Notes = append(f.Notes, "no key of the ring is valid now: the framework would make another at its next start; "+keys[active].file+" becomes the active version")
	}
	keys = append(slices.Delete(slices.Clone(keys), active, active+1), keys[active]) // the one in use comes last
	for _, k := range keys {
		s, err := k.secret()
		if err != nil {
			f.Clear()
			return nil, err
		}
		f.Secrets = append(f.Secrets, s)
		f.hunks = append(f.hunks, hunk{file: k.file})
		f.gcm = k.Descriptor.Inner.Encryption.Algorithm == "AES_256_GCM"
		if a, v := clean(k.Descriptor.Inner.Encryption.Algorithm), clean(k.Descriptor.Inner.Validation.Algorithm); a != "AES_256_CBC" || v != "HMACSHA256" {
			f.Notes = append(f.Notes, fmt.Sprintf("%s is for %s %s: give the format the like, such as --param cipher=gcm", k.file, a, v))
		}
	}
	return f, nil
}

func readRingFiles(files []File) (keys []ringKey, revoked []revocation, err error) {
	for _, file := range files {
		name := path.Base(file.Name)
		isKey := strings.HasPrefix(name, "key-") && strings.HasSuffix(name, ".xml")
		if !isKey && !(strings.HasPrefix(name, "revocation-") && strings.HasSuffix(name, ".xml")) {
			continue
		}
		text, _, err := decodeText(file.Data)
		if err == nil && len(file.Data) > maxRingFile {
			err = errors.New("too large")
		}
		key, revocation := ringKey{file: clean(name)}, revocation{}
		switch {
		case err != nil:
		case isKey:
			err = decodeXML(bytes.NewReader(text)).Decode(&key)
		default:
			err = decodeXML(bytes.NewReader(text)).Decode(&revocation)
		}
		clear(text)
		if err != nil { // its text may have what stands there
			return nil, nil, claviger.Errorf(claviger.Invalid, clean(name)+" is no file of a key ring", "mend it, or move it out of the directory")
		}
		if isKey {
			keys = append(keys, key)
		} else {
			revoked = append(revoked, revocation)
		}
	}
	return keys, revoked, nil
}

func (k *ringKey) secret() (Secret, error) {
	refuse := func(what, hint string) (Secret, error) {
		return Secret{}, claviger.Errorf(claviger.Invalid, k.file+" "+what, hint)
	}
	if decryptor := k.Descriptor.Inner.Encrypted.Decryptor + k.Descriptor.Encrypted.Decryptor; decryptor != "" {
		how := "encrypted"
		for mark, name := range map[string]string{"Dpapi": "encrypted by DPAPI for a Windows account", "EncryptedXml": "encrypted to a certificate"} {
			if strings.Contains(decryptor, mark) {
				how = name
			}
		}
		return refuse("is "+how+": only the application can read it",
			"decrypt it where the application runs, as its account: a short program of its own can write the descriptors out; adopt from that directory, and delete it")
	}
	guid, ok := state.ParseGUID(k.ID)
	if !ok {
		return refuse("has an id that is no GUID", "mend the file")
	}
	master, err := base64.StdEncoding.DecodeString(strings.TrimSpace(k.Descriptor.Inner.Master.Value))
	if err != nil || len(master) == 0 {
		return refuse("has no master key in base64", "mend the file")
	}
	defer clear(master)
	m := recipe.Entry([16]byte(guid), master)
	if err := recipe.DataProtection.Check(m); err != nil {
		clear(m)
		return refuse("has a master key of a size that is not known", "mend the file")
	}
	return Secret{Name: "key " + strings.ToLower(k.ID), File: k.file, Line: 1, Material: m}, nil
}
