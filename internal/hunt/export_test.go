package hunt

import (
	"os"
)

// Skips reports whether the filters skip a window of a kind of material.
func Skips(m, words *Model, window []byte, bias int) bool {
	most := limit(len(window), bias)
	return (*model)(m).cost(window) <= most || text(window) || (*model)(words).cost(window) <= most
}

// SkipsBase64 reports the same of the base64 characters of a window.
func SkipsBase64(words *Model, characters []byte, width, bias int) bool {
	return (*model)(words).cost(characters) <= limit(width, bias) || hexOnly(characters)
}

// Model is the model of the filters.
type Model model

// OwnModel trains on the running program, TrainOn on a file.
func OwnModel(words bool) *Model { return (*Model)(ownModel(words)) }

// TrainOn trains on a file.
func TrainOn(name string) (*Model, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return (*Model)(train(f, info.Size(), false)), nil
}

// Costs returns a row of the model.
func (m *Model) Costs(before byte) [256]uint8 { return m[before] }

// Blind makes a hunt that skips every window.
func Blind(c Config) Config {
	c.model = new(model)
	return c
}
