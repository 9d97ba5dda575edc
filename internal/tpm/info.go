package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	claviger "claviger.dev"
)

// Info asks what the device is and which algorithms it makes keys of. A
// software TPM is told by what it calls itself: one that lies is told apart by
// its endorsement certificate alone.
func (d *Device) Info() (claviger.Device, error) {
	info := claviger.Device{Kind: claviger.TPM}
	err := d.do(func(s *session) error {
		properties, err := s.properties(tpm2.TPMPTManufacturer, 8)
		if err != nil {
			return err
		}
		info.Manufacturer = text(properties[tpm2.TPMPTManufacturer])
		info.Model = strings.TrimSpace(text(properties[tpm2.TPMPTVendorString1]) + text(properties[tpm2.TPMPTVendorString2]) +
			text(properties[tpm2.TPMPTVendorString3]) + text(properties[tpm2.TPMPTVendorString4]))
		v1, v2 := properties[tpm2.TPMPTFirmwareVersion1], properties[tpm2.TPMPTFirmwareVersion2]
		info.Firmware = fmt.Sprintf("%d.%d.%d.%d", v1>>16, v1&0xFFFF, v2>>16, v2&0xFFFF)
		info.Software = isSoftware(info.Manufacturer, info.Model)
		info.Algorithms, err = s.algorithms()
		return err
	})
	return info, err
}

// isSoftware recognises software TPMs: libtpms (swtpm) and the simulators of
// IBM, Microsoft and the reference code.
func isSoftware(manufacturer, model string) bool {
	switch manufacturer {
	case "IBM", "XYZZ", "SW":
		return true
	case "MSFT":
		return strings.Contains(model, "xCG") || strings.Contains(model, "fTPM") || strings.Contains(model, "Virtual")
	}
	return strings.Contains(model, "SW   TPM") || strings.Contains(strings.ToLower(model), "simulator")
}

// text reads the characters of a property.
func text(v uint32) string {
	return strings.Trim(string(binary.BigEndian.AppendUint32(nil, v)), " \x00")
}

func (s *session) properties(first tpm2.TPMPT, count uint32) (map[tpm2.TPMPT]uint32, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(first), PropertyCount: count}.Execute(s.link)
	if err != nil {
		return nil, fmt.Errorf("read properties: %w", err)
	}
	list, err := r.CapabilityData.Data.TPMProperties()
	if err != nil {
		return nil, fmt.Errorf("read properties: %w", err)
	}
	m := map[tpm2.TPMPT]uint32{}
	for _, p := range list.TPMProperty {
		m[p.Property] = p.Value
	}
	return m, nil
}

// algorithms asks the device for each algorithm whether it has it.
func (s *session) algorithms() ([]claviger.Algorithm, error) {
	var all []claviger.Algorithm
	for _, a := range claviger.Algorithms() {
		template, err := keyTemplate(a)
		if err != nil {
			continue // no TPM has it
		}
		_, err = tpm2.TestParms{Parameters: tpm2.TPMTPublicParms{Type: template.Type, Parameters: template.Parameters}}.Execute(s.link)
		switch {
		case err == nil:
			all = append(all, a)
		case errors.Is(err, errLost):
			return nil, err
		}
	}
	return all, nil
}
