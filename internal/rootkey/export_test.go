package rootkey

// FailAt makes a step of every write fail.
func (d *Dir) FailAt(step string, err error) {
	d.fault = func(s string) error {
		if s == step {
			return err
		}
		return nil
	}
}

// DecodeSlots and the document's encoder, for the fuzz target.
func RecodeSlots(data []byte) ([]byte, error) {
	doc, err := decode(data)
	if err != nil {
		return nil, err
	}
	return doc.encode()
}

// Describe says which slots a document has.
func Describe(slots ...Slot) string { return (&document{Slots: slots}).describe() }
