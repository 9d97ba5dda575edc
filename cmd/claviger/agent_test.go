package main_test

import (
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"claviger.dev/internal/p11d/p11dtest"
	"claviger.dev/internal/tpm/tpmtest"
)

// TestAgent runs the script of testdata/agent with software TPMs and a SoftHSM
// token.
func TestAgent(t *testing.T) {
	t.Parallel()
	machine, authority := tpmtest.Certified(t)
	other := tpmtest.Start(t)
	token := p11dtest.NewToken(t)
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	params := scripts(t, "testdata/agent")
	setup := params.Setup
	params.Setup = func(env *testscript.Env) error {
		env.Setenv("TPM", machine.Device())
		env.Setenv("OTHER_TPM", other.Device())
		env.Setenv("TPM_ROOT", root)
		env.Setenv("TOKEN", "pkcs11:token="+url.PathEscape(token.Label)+"?module-path="+p11dtest.Module+"&pin-source=file:"+token.PINFile)
		env.Setenv("TOKEN_CONF", token.Config)
		return setup(env)
	}
	params.Cmds["clone"] = func(ts *testscript.TestScript, _ bool, _ []string) {
		ts.Setenv("CLONE_TPM", machine.Copy(t).Device())
	}
	testscript.Run(t, params)
}
