package custody_test

import (
	"bufio"
	"net"
	"testing"
	"testing/synctest"
	"time"

	claviger "claviger.dev"
	"claviger.dev/internal/custody"
	"claviger.dev/internal/custody/custodytest"
	"claviger.dev/internal/frames"
)

// slug is a device that takes so long for each item, and does one request at a
// time. sizes gets the items of each request.
func slug(each time.Duration, sizes *[]int) func(net.Conn) {
	return func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			f, err := frames.Read(in)
			if err != nil {
				return
			}
			var out frames.Response = &frames.LoadResponse{Fingerprint: claviger.Fingerprint{1}}
			if req, err := frames.ParseRequest(f); err == nil {
				if r, ok := req.(*frames.MACRequest); ok {
					*sizes = append(*sizes, len(r.Inputs))
					<-time.After(time.Duration(len(r.Inputs)) * each)
					out = &frames.MACResponse{Fingerprint: r.Use.Fingerprint, MACs: r.Inputs}
				}
			}
			b, err := frames.AppendResponse(nil, f.ID, out)
			if err != nil {
				return
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
}

// TestSlowDevice gives more work to a device than it does before it would
// count as hung; and shows that it would.
func TestSlowDevice(t *testing.T) {
	m := custody.Material{Binding: custodytest.Binding(claviger.HMACSHA256, claviger.Generated), Blob: []byte("b"), Fingerprint: claviger.Fingerprint{1}}
	work := inputs(frames.MaxItems)
	for _, test := range []struct {
		name   string
		each   time.Duration
		device bool
		most   int // items of a request after the first
	}{
		{"a TPM", 30 * time.Millisecond, true, 8},
		{"RSA on a slow token", 900 * time.Millisecond, true, 1},
		{"a fast one", 20 * time.Microsecond, true, frames.MaxItems},
		{"taken for software", 30 * time.Millisecond, false, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var sizes []int
				c := custody.New(custody.Config{
					Source: &sequence{peers: []func(net.Conn){slug(test.each, &sizes)}}, Timeout: 10 * time.Second, Device: test.device,
				})
				defer c.Close()
				codes, err := c.MAC(t.Context(), m, work)
				if !test.device {
					if claviger.CodeOf(err) != claviger.Unavailable {
						t.Errorf("the control: %v", err)
					}
					<-time.After(time.Minute) // the bubble's: until the device has ended
					return
				}
				if err != nil || len(codes) != len(work) || string(codes[999]) != string(work[999]) {
					t.Fatalf("%d codes, %v", len(codes), err)
				}
				for _, n := range sizes[1:] {
					if n > test.most {
						t.Fatalf("a request of %d items, want at most %d", n, test.most)
					}
				}
				if test.most == frames.MaxItems && len(sizes) != 2 {
					t.Errorf("%d requests to a fast device", len(sizes))
				}
			})
		})
	}
}
