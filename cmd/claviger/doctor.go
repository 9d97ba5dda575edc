package main

import (
	"io"

	"github.com/spf13/cobra"

	"claviger.dev/client"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Report each protective measure as on, off or not available, and what an attacker gains", Args: cobra.NoArgs,
		Long: "Ask the server which protective measures hold now. The exit status is 2 when one that ought to be on is off.",
		RunE: a.with(func(c *cobra.Command, s *client.Client, _ []string) error {
			resp, err := s.Doctor(c.Context())
			if err != nil {
				return err
			}
			err = a.print(resp, func(w io.Writer) {
				for _, m := range resp.Measures {
					row(w, a.mark(m.State), m.Part, m.Name, m.State, m.Detail)
					if m.State != "on" && m.Gain != "" {
						row(w, "", "", "", "", "attacker gains: "+m.Gain)
					}
					if m.State != "on" && m.Hint != "" {
						row(w, "", "", "", "", "do next: "+m.Hint)
					}
				}
			})
			if err == nil && !resp.Healthy {
				err = exitError(2)
			}
			return err
		}),
	}
}

// mark is a sign for people where a terminal shows it, and a letter elsewhere.
func (a *app) mark(state string) string {
	signs := map[string][2]string{"on": {"✔", "+"}, "off": {"✗", "-"}}
	s, ok := signs[state]
	if !ok {
		s = [2]string{"○", "o"}
	}
	if a.interactive() {
		return s[0]
	}
	return s[1]
}
