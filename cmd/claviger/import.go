package main

import (
	"github.com/spf13/cobra"

	"claviger.dev/client"
)

func (a *app) keyImport() *cobra.Command {
	var in, pin, reason string
	c := &cobra.Command{
		Use: "import KEY --in FILE", Short: "Move material into custody, one way", Args: cobra.ExactArgs(1),
		Long: "Seal material to the key process and make it the active version of a key. The server carries ciphertext\n" +
			"that only the pinned key process opens, and only for this key. The file is PEM (PKCS#8, PKCS#1, SEC 1), JWK,\n" +
			"or the raw bytes of a symmetric key. Afterwards delete every copy outside: the version is called exposed for\n" +
			"as long as it lives, because it has been outside.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, args []string) error {
			expected, err := a.pin(pin)
			if err != nil {
				return err
			}
			material, err := a.read(in)
			if err != nil {
				return err
			}
			defer clear(material)
			k, err := s.Import(c.Context(), args[0], material, expected, reason)
			return a.keyResult(k, err)
		}),
	}
	c.Flags().StringVar(&in, "in", "-", "file of the material, - for standard input")
	c.Flags().StringVar(&pin, "pin", "", "SHA-256 of the key process's identity, when it is not known here")
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return c
}
