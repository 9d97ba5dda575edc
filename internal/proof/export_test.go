package proof

// Unexported parts, for the tests.
var (
	ParseCgroup = parseCgroup
	UnitOf      = unitOf
)
