package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"claviger.dev/internal/keeper"
)

// webhookTimeout bounds one delivery of a checkpoint or a finding.
const webhookTimeout = 10 * time.Second

// Exporter returns what carries a checkpoint, one line of JSON, to the file
// and the webhook of the configuration: both are tried, and an error of either
// is returned. It returns nil where neither is configured. With a nil client
// posts go out as net/http does by default.
func (p Checkpoint) Exporter(client *http.Client) func(ctx context.Context, line []byte) error {
	if p.File == "" && p.Webhook == "" {
		return nil
	}
	direct := webhookClient(client)
	return func(ctx context.Context, line []byte) error {
		line = append(bytes.Clone(line), '\n')
		var toFile, toWebhook error
		if p.File != "" {
			toFile = appendSynced(p.File, line)
		}
		if p.Webhook != "" {
			toWebhook = post(ctx, direct, p.Webhook, line)
		}
		return errors.Join(toFile, toWebhook)
	}
}

// Sender returns what posts a finding, nil when the configuration names
// nobody. client may be nil.
func (n Notify) Sender(client *http.Client) func(context.Context, keeper.Notice) error {
	if n.Webhook == "" {
		return nil
	}
	direct := webhookClient(client)
	return func(ctx context.Context, notice keeper.Notice) error {
		line, err := json.Marshal(notice)
		if err != nil {
			return fmt.Errorf("encode notice: %w", err)
		}
		return post(ctx, direct, n.Webhook, append(line, '\n'))
	}
}

// webhookClient posts to where it is told and nowhere else.
func webhookClient(client *http.Client) *http.Client {
	direct := &http.Client{Timeout: webhookTimeout}
	if client != nil {
		direct.Transport = client.Transport
	}
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return direct
}

// appendSynced adds a line to a file, which is durable on return.
func appendSynced(name string, line []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open checkpoint file: %w", err)
	}
	_, err = f.Write(line)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("append to checkpoint file: %w", err)
	}
	return nil
}

// post sends a line. What the receiver answers is not read, but for its status.
func post(ctx context.Context, client *http.Client, address string, line []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(line))
	if err != nil {
		return fmt.Errorf("make webhook request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("post to webhook: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("post to webhook: the receiver answered %s", resp.Status)
	}
	return nil
}
