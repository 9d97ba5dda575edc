package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
)

const (
	maxMessage = 4096             // bytes of a command or a response
	patience   = 20 * time.Second // for a response;
	creation   = 5 * time.Minute  // where it makes a key: an RSA key takes a slow TPM minutes
	maxRepeats = 5                // of a command that the device was too busy to begin
)

// errLost says that the device went away, or answered what no TPM answers.
var errLost = errors.New("the connection to the TPM is broken")

// stream is what the device file and the socket have in common.
type stream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// link is one connection to the device. It implements transport.TPM.
type link struct {
	stream stream
	raw    bool // no resource manager stands between
}

// dial connects to a device.
func dial(path string) (*link, error) {
	if socket, ok := strings.CutPrefix(path, "unix:"); ok {
		conn, err := net.DialTimeout("unix", socket, patience)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errLost, err)
		}
		return &link{stream: conn.(*net.UnixConn), raw: true}, nil
	}
	// The device file is there for one process or many (tpmrm0); either way it
	// never becomes the controlling terminal or anybody else's file.
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errLost, err)
	}
	info, err := file.Stat()
	if err == nil && info.Mode()&fs.ModeCharDevice == 0 {
		err = errors.New("not a device")
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("%w: %w", errLost, err)
	}
	return &link{stream: file, raw: !strings.Contains(path, "tpmrm")}, nil
}

// Send implements transport.TPM. A command that the device answers with "busy,
// send it again" was not begun, so it is sent again, at most maxRepeats times;
// nothing else is.
func (l *link) Send(command []byte) ([]byte, error) {
	wait := time.Millisecond
	for repeat := 0; ; repeat++ {
		response, err := l.roundTrip(command)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errLost, err)
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
			if repeat < maxRepeats {
				<-time.After(wait)
				wait *= 4
				continue
			}
		}
		return response, nil
	}
}

func (l *link) roundTrip(command []byte) ([]byte, error) {
	limit := patience
	if len(command) >= 10 {
		switch tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) {
		case tpm2.TPMCCCreate, tpm2.TPMCCCreatePrimary, tpm2.TPMCCCreateLoaded:
			limit = creation
		}
	}
	// A device file of an old kernel knows no deadlines; its driver has its own.
	if err := l.stream.SetDeadline(time.Now().Add(limit)); err != nil && !errors.Is(err, os.ErrNoDeadline) {
		return nil, err
	}
	if _, err := l.stream.Write(command); err != nil {
		return nil, err
	}
	response := make([]byte, maxMessage)
	n := 0
	for size := 10; n < size; {
		got, err := l.stream.Read(response[n:])
		if n += got; err != nil {
			return nil, err
		}
		if n >= 10 {
			if size = int(binary.BigEndian.Uint32(response[2:])); size < 10 || size > maxMessage || n > size {
				return nil, errors.New("a response of an impossible size")
			}
		}
	}
	return response[:n], nil
}

func (l *link) Close() { _ = l.stream.Close() }
