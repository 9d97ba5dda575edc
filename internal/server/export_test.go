package server

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"claviger.dev/internal/keeper"
)

func TestExportToFile(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "checkpoints")
	export := Checkpoint{File: name}.Exporter(nil)
	for _, line := range []string{`{"seq":"1"}`, `{"seq":"2"}`} {
		if err := export(t.Context(), []byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil || string(got) != "{\"seq\":\"1\"}\n{\"seq\":\"2\"}\n" {
		t.Errorf("the file holds %q, %v", got, err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v, want 0600", info.Mode(), err)
	}
	missing := Checkpoint{File: filepath.Join(t.TempDir(), "no", "such")}.Exporter(nil)
	if err := missing(t.Context(), []byte("{}")); err == nil {
		t.Error("a file that cannot be opened is no error")
	}
	if (Checkpoint{}).Exporter(nil) != nil {
		t.Error("a configuration without a place has an exporter")
	}
}

func TestExportToWebhook(t *testing.T) {
	t.Parallel()
	var got []string
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	answer := http.StatusNoContent
	receiver := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = append(got, r.Method+" "+r.Header.Get("Content-Type")+" "+string(body))
		w.Header().Set("Location", elsewhere.URL)
		w.WriteHeader(answer)
	}))
	defer receiver.Close()
	file := filepath.Join(t.TempDir(), "checkpoints")
	place := Checkpoint{Webhook: receiver.URL, File: file}
	export := place.Exporter(receiver.Client())
	if err := export(t.Context(), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0] != "POST application/json {}\n" {
		t.Errorf("the receiver got %q", got)
	}
	for _, answer = range []int{http.StatusTemporaryRedirect, http.StatusInternalServerError, http.StatusUnauthorized} {
		if err := export(t.Context(), []byte("{}")); err == nil {
			t.Errorf("an answer of %d is no error", answer)
		}
	}
	// The file has every one, whatever the webhook does.
	if text, err := os.ReadFile(file); err != nil || strings.Count(string(text), "\n") != 4 {
		t.Errorf("the file holds %q, %v, want four lines", text, err)
	}
	var unknown x509.UnknownAuthorityError
	if err := place.Exporter(nil)(t.Context(), []byte("{}")); !errors.As(err, &unknown) {
		t.Errorf("a receiver of an unknown authority: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := export(ended, []byte("{}")); !errors.Is(err, context.Canceled) {
		t.Errorf("an export that was cancelled: %v", err)
	}
}

func TestNotify(t *testing.T) {
	t.Parallel()
	if (Notify{}).Sender(nil) != nil {
		t.Error("a configuration without a webhook has a sender")
	}
	var got keeper.Notice
	answer := http.StatusAccepted
	receiver := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		w.WriteHeader(answer)
	}))
	defer receiver.Close()
	send := Notify{Webhook: receiver.URL}.Sender(receiver.Client())
	want := keeper.Notice{Owner: "ann", Finding: "a copy in a log", Count: 1, Versions: []string{"prod/app/key#3"}}
	if err := send(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the notice (-want +got):\n%s", diff)
	}
	answer = http.StatusTeapot
	if err := send(t.Context(), want); err == nil {
		t.Error("a refusal is no error")
	}
}
