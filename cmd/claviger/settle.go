package main

import (
	"time"

	"github.com/spf13/cobra"

	"claviger.dev/client"
)

// waitFlag lets a command that withdraws something wait until that holds
// everywhere.
func waitFlag(c *cobra.Command, wait *bool) {
	c.Flags().BoolVar(wait, "wait", false, "return when every server of the store refuses it, or refuses everything: within two seconds")
}

// settle waits, if asked to, and says which servers have confirmed.
func (a *app) settle(c *cobra.Command, s *client.Client, wait bool) error {
	if !wait {
		return nil
	}
	resp, err := s.Settle(c.Context())
	if err != nil {
		return err
	}
	for _, one := range resp.Servers {
		if one.Confirmed {
			a.say("%s has confirmed it", one.Node)
		} else {
			a.say("%s was not heard of and refuses every use", one.Node)
		}
	}
	a.say("it holds everywhere after %v", resp.Took.AsDuration().Round(time.Millisecond))
	return nil
}
