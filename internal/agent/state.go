package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"claviger.dev"
	pb "claviger.dev/api/claviger/v1"
	"claviger.dev/client"
	"claviger.dev/internal/frames"
)

// What lies in the agent's directory, which is 0700.
const (
	stateFile  = "agent.json" // 0600
	profileDir = "profile"    // a client's, without a key
	unsealDir  = "unseal"     // root key of a key process of its own
)

// maxState is the longest state that is read: 64 KiB.
const maxState = 64 << 10

// state is what the agent knows of its key. The blob is ciphertext of the
// device, or a reference into it.
type state struct {
	Custodian claviger.Custodian `json:"custodian"`
	Device    string             `json:"device_path,omitempty"` // of a TPM, or the URI of a token
	Variables []string           `json:"variables,omitempty"`   // of the token's module
	User      string             `json:"key_user,omitempty"`    // account of the local key process
	About     claviger.Device    `json:"device"`
	Key       frames.Binding     `json:"key"`
	Public    []byte             `json:"public"` // raw
	Blob      []byte             `json:"blob"`
	Level     claviger.Level     `json:"level"` // as the custodian reports it
	Bound     *claviger.Binding  `json:"bound,omitempty"`
}

// ProfileDir returns the client's profile of an agent's directory.
func ProfileDir(dir string) string { return filepath.Join(dir, profileDir) }

// Is reports whether the directory is an agent's.
func Is(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, stateFile))
	return err == nil
}

func damaged() *claviger.Error {
	return claviger.Errorf(claviger.Invalid, "the agent's state is damaged", "remove the agent's directory and enrol again")
}

func load(dir string) (s state, err error) {
	name := filepath.Join(dir, stateFile)
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, claviger.Errorf(claviger.NotFound, "there is no agent in "+dir, "enrol with 'claviger agent enroll'").Wrap(err)
	case err != nil || !info.Mode().IsRegular() || info.Size() > maxState:
		return s, damaged().Wrap(err)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return s, damaged().Wrap(err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return s, damaged().Wrap(err)
	}
	if err := s.Key.Validate(); err != nil {
		return s, damaged().Wrap(err)
	}
	return s, nil
}

// workDir makes the directory that is to become dir.
func workDir(dir string) (string, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", fmt.Errorf("make the directory of agents: %w", err)
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-") // 0700
	if err != nil {
		return "", fmt.Errorf("make the agent's directory: %w", err)
	}
	return work, nil
}

// Keep puts the agent's directory in place, with the profile that the
// enrolment brought.
func (a *Agent) Keep(dir string, p *client.Profile, bound *pb.PrincipalBinding) error {
	if err := client.SaveProfile(ProfileDir(a.dir), p); err != nil {
		return err
	}
	if err := a.note(bound); err != nil {
		return err
	}
	err := os.Rename(a.dir, dir)
	if err == nil {
		a.dir, a.unplaced = dir, false
		err = syncDir(filepath.Dir(dir))
	}
	if err != nil {
		return claviger.Errorf(claviger.Unavailable, "the agent's directory cannot be put in place", "see to "+dir+"; the code is used up, so ask for another").Wrap(err)
	}
	return nil
}

// note writes the state with what the server says of the binding.
func (a *Agent) note(bound *pb.PrincipalBinding) error {
	if bound != nil {
		a.state.Bound = &claviger.Binding{
			Custodian: claviger.Custodian(bound.Custodian), Device: bound.Device, Software: bound.Software, Fingerprint: bound.Fingerprint,
			AKName: bound.AkName, EKFingerprint: bound.EkFingerprint, Level: claviger.Level(bound.Level),
			Root: bound.Root, TestRoot: bound.TestRoot, At: bound.At.AsTime(), Finding: bound.Finding,
		}
	}
	text, err := json.MarshalIndent(a.state, "", "  ")
	if err == nil {
		err = replace(filepath.Join(a.dir, stateFile), append(text, '\n'))
	}
	if err != nil {
		return claviger.Errorf(claviger.Unavailable, "the agent's state cannot be stored", "check the disk and the permissions of "+a.dir).Wrap(err)
	}
	return nil
}

// replace writes a file that the user alone can read, whole or not at all.
func replace(name string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Status is what an agent knows of itself without asking anybody.
type Status struct {
	Custodian claviger.Custodian `json:"custodian"`
	Path      string             `json:"path,omitempty"` // of a TPM, or the URI of a token
	Device    claviger.Device    `json:"device"`
	Level     claviger.Level     `json:"level"` // as the custodian reports it
	Bound     *claviger.Binding  `json:"bound,omitempty"`
}

// ReadStatus reads what the agent in the directory knows.
func ReadStatus(dir string) (Status, error) {
	s, err := load(dir)
	return Status{s.Custodian, s.Device, s.About, s.Level, s.Bound}, err
}

// Status returns what the agent knows.
func (a *Agent) Status() Status {
	return Status{a.state.Custodian, a.state.Device, a.state.About, a.state.Level, a.state.Bound}
}
