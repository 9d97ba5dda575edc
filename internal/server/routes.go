package server

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"claviger.dev"
	clavigerv1 "claviger.dev/api/claviger/v1"
)

// authenticator says how a method wants its caller proved.
type authenticator string

const (
	authAny  authenticator = "any"  // peer credentials on the local socket, a client certificate elsewhere
	authMTLS authenticator = "mtls" // a client certificate alone
	authNone authenticator = "none" // the request carries its own proof
)

// class is a rate class: whose calls are counted together, and how strictly.
type class string

const (
	classUse    class = "use"    // by principal; key use, generous
	classAdmin  class = "admin"  // by principal
	classHeavy  class = "heavy"  // by principal; reads or writes a great deal
	classEnroll class = "enroll" // by source address or uid, strict: the caller is a stranger
	classPublic class = "public" // by source address; public keys
)

// route is one row: the limits of one method, and what it is for.
type route struct {
	procedure string // "/claviger.v1.UseService/Sign"
	body      int64  // most bytes of the request's body
	deadline  time.Duration
	auth      authenticator
	operation claviger.Operation // that the door asks of the principal; "" where it asks none. For the documentation alone
	class     class
	stream    bool // answers with many messages; the deadline does not hold, a stop of the server ends it
}

const (
	small = 64 << 10
	// The keeper takes 4 MiB of items; base64 makes them a third longer.
	large = 6 << 20
	// 1 MiB is searched at once, which base64 makes a third longer.
	haystack = 2 << 20
	// An RSA-4096 key takes seconds, and where others have the machine a minute.
	making = 130 * time.Second
	// A run has about 2 KiB for each version, or less where they share attempts.
	run = 32 << 20
)

func row(method string, body int64, deadline time.Duration, auth authenticator, op claviger.Operation, class class) route {
	service, name, _ := strings.Cut(method, ".")
	return route{procedure: "/claviger.v1." + service + "Service/" + name, body: body, deadline: deadline, auth: auth, operation: op, class: class}
}

// routes is the table. A method without a row does not start.
func routes() []route { return slices.Concat(keyRoutes(), sessionRoutes()) }

// sessionRoutes are the rows of clients and sessions, and of what is told of
// their end.
func sessionRoutes() []route {
	return []route{
		row("Session.OpenSession", small, 5*time.Second, authAny, claviger.OpenSession, classUse),
		row("Session.SignForSession", small, 5*time.Second, authAny, "", classUse),
		row("Session.GetSession", small, 5*time.Second, authAny, claviger.ManageSessions, classAdmin),
		row("Session.ListSessions", small, 10*time.Second, authAny, claviger.ManageSessions, classAdmin),
		row("Session.CloseSession", small, 10*time.Second, authAny, claviger.ManageSessions, classUse),
		row("Session.BindSession", small, 5*time.Second, authAny, "", classUse),
		row("Session.SuspendSession", small, 10*time.Second, authAny, claviger.ManageSessions, classAdmin),
		row("Session.ResumeSession", small, 10*time.Second, authAny, claviger.ManageSessions, classAdmin),

		row("Client.CreateClient", 256<<10, 10*time.Second, authAny, claviger.ManageClients, classAdmin),
		row("Client.GetClient", small, 5*time.Second, authAny, claviger.ManageClients, classAdmin),
		row("Client.ListClients", small, 10*time.Second, authAny, claviger.ManageClients, classAdmin),
		row("Client.UpdateClient", 256<<10, 10*time.Second, authAny, claviger.ManageClients, classAdmin),
		row("Client.DisableClient", small, 10*time.Second, authAny, claviger.ManageClients, classAdmin),

		row("Receiver.CreateReceiver", 128<<10, 10*time.Second, authAny, claviger.ManageClients, classAdmin),
		row("Receiver.GetReceiver", small, 5*time.Second, authAny, claviger.ManageClients, classAdmin),
		row("Receiver.ListReceivers", small, 10*time.Second, authAny, claviger.ManageClients, classAdmin),
		row("Receiver.RemoveReceiver", small, 10*time.Second, authAny, claviger.ManageClients, classAdmin),
		row("Receiver.ListDeliveries", small, 10*time.Second, authAny, claviger.ManageClients, classAdmin),
		row("Receiver.RetryDeliveries", small, 10*time.Second, authAny, claviger.ManageClients, classAdmin),
	}
}

// keyRoutes are the rows of keys, of who may use them, and of the server.
func keyRoutes() []route {
	stream := func(r route) route { r.stream = true; return r }
	return []route{
		row("Use.Sign", large, 5*time.Second, authAny, claviger.Sign, classUse),
		row("Use.SignStructured", small, 5*time.Second, authAny, claviger.Sign, classUse),
		row("Use.Verify", large, 5*time.Second, authAny, claviger.Verify, classUse),
		row("Use.Mac", large, 5*time.Second, authAny, claviger.MAC, classUse),
		row("Use.VerifyMac", large, 5*time.Second, authAny, claviger.VerifyMAC, classUse),
		row("Use.Seal", large, 5*time.Second, authAny, claviger.Seal, classUse),
		row("Use.Open", large, 5*time.Second, authAny, claviger.Open, classUse),

		row("State.Protect", large, 5*time.Second, authAny, claviger.Protect, classUse),
		row("State.Unprotect", large, 5*time.Second, authAny, claviger.Unprotect, classUse),
		row("State.Drain", small, 10*time.Second, authAny, claviger.ReadKey, classAdmin),

		row("Key.CreateKey", small, making, authAny, claviger.CreateKey, classAdmin),
		row("Key.GetKey", small, 5*time.Second, authAny, claviger.ReadKey, classAdmin),
		row("Key.ListKeys", small, 10*time.Second, authAny, claviger.ReadKey, classAdmin),
		row("Key.RotateKey", small, making, authAny, claviger.ManageKey, classAdmin),
		row("Key.RetireVersion", small, 10*time.Second, authAny, claviger.ManageKey, classAdmin),
		row("Key.ExposeKey", small, making, authAny, claviger.ManageKey, classAdmin),
		row("Key.ChangeState", small, 10*time.Second, authAny, claviger.ManageKey, classAdmin),
		row("Key.UpdateKey", small, 10*time.Second, authAny, claviger.ManageKey, classAdmin),
		row("Key.RenameKey", small, 10*time.Second, authAny, claviger.ManageKey, classAdmin),
		row("Key.BeginImport", small, 10*time.Second, authAny, claviger.ManageKey, classAdmin),
		row("Key.ImportKey", small, 10*time.Second, authAny, claviger.ManageKey, classAdmin),

		row("Grant.CreateGrant", 256<<10, 10*time.Second, authAny, claviger.ManageGrants, classAdmin),
		row("Grant.GetGrant", small, 5*time.Second, authAny, claviger.ManageGrants, classAdmin),
		row("Grant.ListGrants", small, 10*time.Second, authAny, claviger.ManageGrants, classAdmin),
		row("Grant.RevokeGrant", small, 10*time.Second, authAny, claviger.ManageGrants, classAdmin),

		row("Principal.CreatePrincipal", small, 10*time.Second, authAny, claviger.ManagePrincipals, classAdmin),
		row("Principal.GetPrincipal", small, 5*time.Second, authAny, claviger.ManagePrincipals, classAdmin),
		row("Principal.ListPrincipals", small, 10*time.Second, authAny, claviger.ManagePrincipals, classAdmin),
		row("Principal.RevokePrincipal", small, 10*time.Second, authAny, claviger.ManagePrincipals, classAdmin),
		row("Principal.IssueCode", small, 10*time.Second, authAny, claviger.ManagePrincipals, classAdmin),
		row("Principal.Enroll", small, 10*time.Second, authNone, "", classEnroll),
		row("Principal.BeginEnroll", small, 10*time.Second, authNone, "", classEnroll),
		row("Principal.FinishEnroll", small, 10*time.Second, authNone, "", classEnroll),
		row("Principal.BeginRenew", small, 10*time.Second, authNone, "", classEnroll),
		row("Principal.FinishRenew", small, 10*time.Second, authNone, "", classEnroll),
		row("Principal.Renew", small, 10*time.Second, authMTLS, "", classAdmin),
		row("Principal.ListCertificates", small, 10*time.Second, authAny, claviger.ManagePrincipals, classAdmin),
		row("Principal.RevokeCertificate", small, 10*time.Second, authAny, claviger.ManagePrincipals, classAdmin),
		row("Principal.WhoAmI", small, 5*time.Second, authAny, "", classAdmin),

		stream(row("Audit.Query", small, 0, authAny, claviger.ReadAudit, classHeavy)),
		row("Audit.VerifyAudit", small, 10*time.Minute, authAny, claviger.ReadAudit, classHeavy),
		row("Audit.Checkpoint", small, 10*time.Second, authAny, claviger.ReadAudit, classAdmin),

		row("Evidence.RunAttest", small, 30*time.Second, authAny, claviger.ManageKey, classAdmin),
		row("Evidence.RunProbe", small, 2*time.Minute, authAny, claviger.ManageKey, classAdmin),
		row("Evidence.SearchMaterial", haystack, 30*time.Second, authAny, claviger.ManageServer, classAdmin),
		row("Evidence.SubmitEvidence", run, 10*time.Minute, authAny, claviger.ManageKey, classHeavy),
		row("Evidence.ListEvidence", small, 10*time.Second, authAny, claviger.ReadKey, classAdmin),
		row("Evidence.GetStatement", small, 30*time.Second, authAny, claviger.ReadAudit, classHeavy),
		row("Evidence.ReportCopy", small, 10*time.Second, authAny, claviger.ManageKey, classAdmin),
		row("Evidence.CloseCopy", small, 10*time.Second, authAny, claviger.ManageKey, classAdmin),
		row("Evidence.ListCustodians", small, 10*time.Second, authAny, claviger.ManageServer, classAdmin),

		row("Server.Info", small, 5*time.Second, authAny, "", classAdmin),
		row("Server.Doctor", small, 10*time.Second, authAny, claviger.ManageServer, classAdmin),
		stream(row("Server.Backup", small, 0, authAny, claviger.ManageServer, classHeavy)),
		row("Server.Rewrap", small, 10*time.Minute, authAny, claviger.ManageServer, classHeavy),
		row("Server.Admit", small, 10*time.Second, authNone, "", classEnroll),
		row("Server.RecoveryShares", small, 10*time.Second, authAny, claviger.ManageServer, classHeavy),
		row("Server.RecoveryChallenge", small, 10*time.Second, authAny, claviger.ManageServer, classHeavy),
		row("Server.RecoveryVerify", small, 10*time.Second, authAny, claviger.ManageServer, classHeavy),
		row("Server.Settle", small, 5*time.Second, authAny, "", classAdmin),
	}
}

// services are the generated files whose services must all be in the table.
func services() []protoreflect.FileDescriptor {
	return []protoreflect.FileDescriptor{
		clavigerv1.File_claviger_v1_use_proto, clavigerv1.File_claviger_v1_keys_proto, clavigerv1.File_claviger_v1_grants_proto,
		clavigerv1.File_claviger_v1_principals_proto, clavigerv1.File_claviger_v1_audit_proto, clavigerv1.File_claviger_v1_server_proto,
		clavigerv1.File_claviger_v1_evidence_proto, clavigerv1.File_claviger_v1_state_proto, clavigerv1.File_claviger_v1_receivers_proto,
		clavigerv1.File_claviger_v1_sessions_proto,
	}
}

// checkRoutes compares the table with the generated services, both ways.
func checkRoutes(table []route, files []protoreflect.FileDescriptor) error {
	rows := make(map[string]route, len(table))
	for _, r := range table {
		if _, twice := rows[r.procedure]; twice {
			return fmt.Errorf("method %s has two rows in the table of routes", r.procedure)
		}
		rows[r.procedure] = r
	}
	for _, file := range files {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				m := methods.Get(j)
				procedure := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
				r, ok := rows[procedure]
				switch {
				case !ok:
					return fmt.Errorf("method %s has no row in the table of routes", procedure)
				case r.stream != m.IsStreamingServer() || m.IsStreamingClient():
					return fmt.Errorf("method %s streams otherwise than its row says", procedure)
				case r.body <= 0 || r.deadline <= 0 && !r.stream || r.auth == "" || r.class == "":
					return fmt.Errorf("method %s has a row without its limits", procedure)
				}
				delete(rows, procedure)
			}
		}
	}
	for procedure := range rows {
		return fmt.Errorf("the table of routes has a row for %s, which no service has", procedure)
	}
	return nil
}

// knownContentType reports the protocols' own content types; anything else is refused
// with a hint before it is looked at.
func knownContentType(r *http.Request) bool {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	switch strings.ToLower(strings.TrimSpace(kind)) {
	case "application/json", "application/proto", "application/connect+json", "application/connect+proto",
		"application/grpc", "application/grpc+proto", "application/grpc+json",
		"application/grpc-web", "application/grpc-web+proto", "application/grpc-web+json":
		return true
	}
	return false
}
