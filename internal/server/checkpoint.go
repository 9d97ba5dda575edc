package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"
)

// exportTimeout bounds one post of a checkpoint; exportAgain is the pause
// before it is tried again.
const (
	exportTimeout = 10 * time.Second
	exportAgain   = 30 * time.Second
)

// Exporter carries checkpoints of the record to where they are kept. The
// newest covers all before it, so only that one waits to be carried.
type Exporter struct {
	to    Checkpoint
	log   *slog.Logger
	http  *http.Client
	lines chan []byte // at most one
}

// NewExporter makes an exporter to the places that a configuration names. With
// a nil client, posts go out as net/http does by default.
func NewExporter(to Checkpoint, client *http.Client, log *slog.Logger) *Exporter {
	if client == nil {
		client = &http.Client{}
	}
	direct := *client
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	direct.Timeout = exportTimeout
	return &Exporter{to: to, log: log, http: &direct, lines: make(chan []byte, 1)}
}

// Keep takes a checkpoint and returns at once. It is made for the keeper's
// Checkpointed; one caller at a time.
func (e *Exporter) Keep(line []byte) {
	select {
	case <-e.lines: // an older one, which this one covers
	default:
	}
	e.lines <- bytes.Clone(line)
}

// Run carries checkpoints until ctx ends. What fails is logged and tried again
// until it succeeds or a newer one has come.
func (e *Exporter) Run(ctx context.Context) {
	var line []byte
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case line = <-e.lines:
		case <-again:
		}
		again = nil
		if err := e.export(ctx, line); err != nil && ctx.Err() == nil {
			e.log.ErrorContext(ctx, "a checkpoint could not be kept elsewhere; it is tried again", "error", err)
			again = time.After(exportAgain)
		}
	}
}

func (e *Exporter) export(ctx context.Context, line []byte) error {
	if e.to.File != "" {
		if err := appendLine(e.to.File, line); err != nil {
			return err
		}
	}
	if e.to.Webhook == "" {
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.to.Webhook, bytes.NewReader(line))
	if err != nil {
		return fmt.Errorf("post checkpoint: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := e.http.Do(req)
	if err != nil {
		return fmt.Errorf("post checkpoint: %w", err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection is kept
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("post checkpoint: the answer is %s", res.Status)
	}
	return nil
}

// appendLine makes one line of a file durable.
func appendLine(path string, line []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("append checkpoint: %w", err)
	}
	_, err = f.Write(append(bytes.TrimRight(line, "\n"), '\n'))
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("append checkpoint: %w", err)
	}
	return nil
}
