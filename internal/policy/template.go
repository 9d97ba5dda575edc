package policy

type templateCache struct{}
