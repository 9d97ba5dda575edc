package audit

// Statement returns the bytes that are signed.
func (c Checkpoint) Statement() []byte { return nil }
