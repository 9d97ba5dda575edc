package sdk_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
)

// searchProcess returns those texts, which may be any bytes, that are in the
// memory, the environment or the arguments of a process: as they are, in UTF-16,
// in hexadecimal, and in base64 of either alphabet wherever in an encoded text
// they begin.
func searchProcess(t testing.TB, pid int, texts ...string) (found []string) {
	t.Helper()
	forms := make([][][]byte, len(texts))
	longest := 0
	for i, text := range texts {
		forms[i] = spellings(text)
		for _, form := range forms[i] {
			longest = max(longest, len(form))
		}
	}
	look := func(data []byte) {
		for i, text := range texts {
			if !slices.Contains(found, text) && slices.ContainsFunc(forms[i], func(form []byte) bool { return bytes.Contains(data, form) }) {
				found = append(found, text)
			}
		}
	}
	root := fmt.Sprintf("/proc/%d/", pid)
	for _, name := range []string{"environ", "cmdline"} {
		data, err := os.ReadFile(root + name)
		check(t, err)
		look(data)
	}
	maps, err := os.ReadFile(root + "maps")
	check(t, err)
	memory, err := os.Open(root + "mem")
	check(t, err)
	defer memory.Close()
	read, window := 0, make([]byte, 4<<20)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' || strings.Contains(line, "[v") {
			continue
		}
		for at := from; at < to; at += int64(len(window) - longest) { // windows overlap by a longest form
			n, err := memory.ReadAt(window[:min(int64(len(window)), to-at)], at)
			read += n
			look(window[:n])
			if err != nil && err != io.EOF {
				break // the process gave the pages back meanwhile
			}
		}
	}
	if read < 1<<20 {
		t.Fatalf("only %d bytes of the process's memory were read", read)
	}
	return found
}

// spellings returns the forms in which a text is looked for.
func spellings(text string) [][]byte {
	var wide []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		wide = append(wide, byte(unit), byte(unit>>8))
	}
	digits := hex.EncodeToString([]byte(text))
	forms := [][]byte{[]byte(text), wide, []byte(digits), []byte(strings.ToUpper(digits))}
	for before := range 3 { // bytes that share base64's first group of three with the text
		for _, alphabet := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			encoded := alphabet.EncodeToString(append(make([]byte, before), text...))
			whole := (before + len(text)) * 4 / 3 // characters that are of these bytes alone
			forms = append(forms, []byte(encoded[(before*4+2)/3:min(whole, len(encoded))]))
		}
	}
	return forms
}

func TestSearchProcess(t *testing.T) {
	there, never := newSecret(), newSecret()
	inBase64 := base64.StdEncoding.EncodeToString([]byte("xy" + there + "z"))
	inHex := hex.EncodeToString([]byte(there))
	for name, carries := range map[string]string{"raw": there, "base64": inBase64, "hex": inHex} {
		t.Run(name, func(t *testing.T) {
			// The text is in its memory alone: it reads it from standard input.
			p := launch(t, carries+"\n", nil, python, "-c", "import sys, time; kept = sys.stdin.readline(); print(1, flush=True); time.sleep(60)")
			if found := searchProcess(t, p.cmd.Process.Pid, never, there); !slices.Equal(found, []string{there}) {
				t.Errorf("found %d texts, not the one that is there", len(found))
			}
			p.apart(there, never)
		})
	}
}
