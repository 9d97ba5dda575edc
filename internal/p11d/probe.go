//go:build cgo

package p11d

import (
	"io"

	"claviger.dev/internal/frames"
)

func (c *custodian) probe(*frames.ProbeRequest) (*frames.ProbeResponse, error) { return nil, errDevice }

func attack(*device, Options, io.Reader, io.Writer) error { return errDevice }
