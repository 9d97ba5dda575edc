package frames

import (
	claviger "claviger.dev"
	"claviger.dev/internal/recipe"
)

// Binding is what a wrapped blob is bound to. A blob opens only under the
// binding that it was made with.
type Binding struct {
	KeyID     claviger.ID
	Version   uint32 // from 1
	Algorithm claviger.Algorithm
	Recipe    string // claviger.PlainRecipe; of a claviger.MachineKey, its recipe set
	Origin    claviger.Origin
}

// Append appends the canonical encoding, which is the associated data of a
// blob. Distinct bindings have distinct encodings.
func (b Binding) Append(dst []byte) []byte {
	c := codec{buf: append(dst, "claviger binding v1\x00"...)}
	b.fields(&c)
	return c.buf
}

func (b *Binding) fields(c *codec) {
	c.text((*string)(&b.KeyID), 64)
	c.u32(&b.Version)
	c.text((*string)(&b.Algorithm), 64)
	c.text(&b.Recipe, 64)
	c.text((*string)(&b.Origin), 64)
}

// Validate checks every field.
func (b Binding) Validate() error {
	if _, err := claviger.ParseID(string(b.KeyID)); err != nil {
		return err
	}
	if _, err := claviger.ParseAlgorithm(string(b.Algorithm)); err != nil {
		return err
	}
	if b.Version == 0 {
		return claviger.Errorf(claviger.Invalid, "a version number starts at 1", "name an existing version")
	}
	if b.Algorithm == claviger.MachineKey {
		if _, err := recipe.ParseSet(b.Recipe); err != nil {
			return err
		}
	} else if b.Recipe != claviger.PlainRecipe {
		return claviger.Errorf(claviger.Unsupported, "a key of this algorithm answers no recipe set", "use the recipe plain, or the algorithm machine-key")
	}
	if b.Origin != claviger.Generated && b.Origin != claviger.Imported {
		return claviger.Errorf(claviger.Invalid, "there is no such origin", "use generated or imported")
	}
	return nil
}

// IsZero reports whether the binding was never set.
func (b Binding) IsZero() bool { return b == Binding{} }
