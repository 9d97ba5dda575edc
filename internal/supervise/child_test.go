package supervise_test

import (
	"strings"
	"testing"
	"time"

	"claviger.dev/internal/supervise"
)

func TestChild(t *testing.T) {
	t.Parallel()
	c, err := supervise.StartChild(t.Context(), supervise.ChildConfig{BinDir: "/bin", Program: "sh", Args: []string{"-c", "read x <&3; echo \"heard $x\" >&3; cat <&3; echo done >&2; exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := c.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write([]byte("us\n")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, len("heard us\n"))
	if _, err := conn.Read(answer); err != nil || string(answer) != "heard us\n" {
		t.Errorf("the child answered %q, %v", answer, err)
	}
	if err := c.Err(); err != nil {
		t.Errorf("a child that runs has ended: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Err(); err == nil || !strings.Contains(err.Error(), "exit status 3: done") {
		t.Errorf("the child ended with %v", err)
	}
	if _, err := c.Next(t.Context()); err == nil {
		t.Error("a child that has ended was replaced")
	}
}

func TestChildThatIsNotThere(t *testing.T) {
	t.Parallel()
	if _, err := supervise.StartChild(t.Context(), supervise.ChildConfig{BinDir: t.TempDir(), Program: "claviger-none"}); err == nil {
		t.Error("a program that does not exist was started")
	}
}
