package audit_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"claviger.dev"
	"claviger.dev/internal/audit"
	"claviger.dev/internal/audit/audittest"
)

// The attributes that the schema requires, by class; the base ones of every
// class first. Where one of several is enough they are joined by '|'.
var (
	ocsfBase = []string{"activity_id", "category_uid", "class_uid", "type_uid", "severity_id", "time", "metadata.version",
		"metadata.product.vendor_name|metadata.product.name", "status_id"}
	ocsfRequired = map[float64][]string{
		6003: {"actor.user|actor.process", "actor.user.name|actor.user.uid", "api.operation", "src_endpoint.ip|src_endpoint.name", "resources"},
		3004: {"entity.name|entity.uid", "entity.type", "actor.user.name|actor.user.uid"},
		3002: {"user.name|user.uid", "service.name|dst_endpoint"},
	}
)

func TestOCSF(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change                  func(*audit.Record)
		class, activity, status float64
	}{
		"a signature":        {func(*audit.Record) {}, 6003, 1, 1},
		"a denied signature": {func(r *audit.Record) { r.Outcome, r.Code, r.Reason = audit.Denied, claviger.Denied, "no grant" }, 6003, 1, 2},
		"a failed open":      {func(r *audit.Record) { r.Action, r.Outcome, r.Code = "use.open", audit.Failed, claviger.Unavailable }, 6003, 2, 2},
		"an unknown caller":  {func(r *audit.Record) { r.Principal, r.PrincipalName, r.Source = "", "", "" }, 6003, 1, 1},
		"a new key":          {func(r *audit.Record) { r.Action = "key.create" }, 3004, 1, 1},
		"a rotation":         {func(r *audit.Record) { r.Action, r.Reason = "key.rotate", "monthly" }, 3004, 3, 1},
		"a revoked grant":    {func(r *audit.Record) { r.Action, r.Key, r.KeyID = "grant.revoke", "", "" }, 3004, 4, 1},
		"a start": {func(r *audit.Record) {
			*r = audit.Record{Time: r.Time, Action: audit.ActionStart, Outcome: audit.Allowed, UID: -1, Writer: "w", Seq: 1}
		}, 3004, 1, 1},
		"an authentication": {func(r *audit.Record) { r.Action, r.Outcome = "auth.mtls", audit.Denied }, 3002, 1, 2},
		"an operator":       {func(r *audit.Record) { r.PrincipalKind, r.UID, r.Executable = "operator", 0, "/usr/bin/claviger" }, 6003, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := audittest.Sample(0)
			r.Writer, r.Seq = "w", 7
			test.change(r)
			var out bytes.Buffer
			if err := audit.WriteOCSF(&out, r, "1.2.3"); err != nil {
				t.Fatal(err)
			}
			if bytes.Count(out.Bytes(), []byte("\n")) != 1 {
				t.Errorf("it is not one line: %q", out.String())
			}
			var event map[string]any
			if err := json.Unmarshal(out.Bytes(), &event); err != nil {
				t.Fatal(err)
			}
			if event["class_uid"] != test.class || event["activity_id"] != test.activity || event["status_id"] != test.status {
				t.Errorf("class %v activity %v status %v, want %v %v %v", event["class_uid"], event["activity_id"], event["status_id"], test.class, test.activity, test.status)
			}
			if event["type_uid"] != test.class*100+test.activity || event["category_uid"] != float64(int(test.class)/1000) {
				t.Errorf("type_uid %v, category_uid %v", event["type_uid"], event["category_uid"])
			}
			if event["time"] != float64(r.Time.UnixMilli()) {
				t.Errorf("time %v, want milliseconds %d", event["time"], r.Time.UnixMilli())
			}
			for _, attribute := range append(ocsfBase, ocsfRequired[test.class]...) {
				if !present(event, attribute) {
					t.Errorf("no %s in %s", attribute, out.String())
				}
			}
		})
	}
}

func present(event map[string]any, attribute string) bool {
	for _, path := range strings.Split(attribute, "|") {
		var at any = event
		for _, name := range strings.Split(path, ".") {
			object, _ := at.(map[string]any)
			at = object[name]
		}
		if at != nil && at != "" {
			return true
		}
	}
	return false
}
