package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"claviger.dev"
)

// OCSFVersion is the version of the Open Cybersecurity Schema Framework in
// which records are exported (schema.ocsf.io).
const OCSFVersion = "1.3.0"

// The classes that are used, with their categories: a use of a key is an API
// activity, a proof of identity an authentication, and every change an entity
// management.
const (
	ocsfEntityManagement = 3004
	ocsfAuthentication   = 3002
	ocsfAPIActivity      = 6003
)

type object = map[string]any

// WriteOCSF writes the record as one OCSF event, one line of JSON. product is
// the version of the program that exports.
func WriteOCSF(w io.Writer, r *Record, product string) error {
	class, activity, activityName := ocsfActivity(r.Action)
	status, severity := ocsfStatus(r.Outcome)
	event := object{
		"category_uid":  class / 1000,
		"class_uid":     class,
		"activity_id":   activity,
		"activity_name": activityName,
		"type_uid":      class*100 + activity,
		"severity_id":   severity,
		"status_id":     status,
		"time":          r.Time.UnixMilli(),
		"actor":         ocsfActor(r),
		"src_endpoint":  ocsfEndpoint(r),
		"metadata": object{
			"version":     OCSFVersion,
			"product":     object{"name": "Claviger", "vendor_name": "Claviger", "version": product},
			"uid":         r.Writer + "/" + strconv.FormatUint(r.Seq, 10),
			"sequence":    r.Seq,
			"event_code":  r.Action,
			"log_name":    "audit",
			"log_version": "1",
		},
		"unmapped": ocsfUnmapped(r),
	}
	if r.Code != "" {
		event["status_code"] = string(r.Code)
	}
	if r.Reason != "" {
		event["status_detail"] = r.Reason
	}
	switch class {
	case ocsfAPIActivity:
		api := object{"operation": r.Action, "service": object{"name": "claviger"}}
		if r.RequestID != "" {
			api["request"] = object{"uid": r.RequestID}
		}
		event["api"] = api
		event["resources"] = []any{ocsfEntity(r)}
		if r.Count > 0 {
			event["count"] = r.Count
		}
	case ocsfEntityManagement:
		event["entity"] = ocsfEntity(r)
		if r.Reason != "" {
			event["comment"] = r.Reason
		}
	case ocsfAuthentication:
		event["user"] = ocsfUser(r)
		event["service"] = object{"name": "claviger"}
	}
	line, err := json.Marshal(event)
	if err != nil {
		return fmt.Errorf("encode OCSF event: %w", err)
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write OCSF event: %w", err)
	}
	return nil
}

// ocsfActivity finds the class of an action and what it does there.
func ocsfActivity(action string) (class, activity int, name string) {
	noun, verb, _ := strings.Cut(action, ".")
	switch noun {
	case "use":
		// Of create, read, update and delete, making a signature, a tag or a
		// ciphertext is creating, and checking or opening one is reading.
		switch claviger.Operation(verb) {
		case claviger.Sign, claviger.MAC, claviger.Seal, claviger.Protect:
			return ocsfAPIActivity, 1, "Create"
		case claviger.Verify, claviger.VerifyMAC, claviger.Open, claviger.Unprotect:
			return ocsfAPIActivity, 2, "Read"
		}
		return ocsfAPIActivity, 99, "Other"
	case "auth", "session":
		if strings.HasPrefix(verb, "logout") || strings.HasPrefix(verb, "end") {
			return ocsfAuthentication, 2, "Logoff"
		}
		return ocsfAuthentication, 1, "Logon"
	}
	first, _, _ := strings.Cut(verb, "-")
	switch first {
	case "create", "issue", "enrol", "code", "admit", "import", "start", "checkpoint", "begin":
		return ocsfEntityManagement, 1, "Create"
	case "read", "list", "query", "verify", "export", "backup", "doctor", "recovery":
		return ocsfEntityManagement, 2, "Read"
	case "destroy", "delete", "remove", "revoke", "retire":
		return ocsfEntityManagement, 4, "Delete"
	}
	return ocsfEntityManagement, 3, "Update"
}

// ocsfStatus maps an outcome: 1 success, 2 failure; severity 1 informational,
// 2 low, 3 medium.
func ocsfStatus(o Outcome) (status, severity int) {
	switch o {
	case Allowed:
		return 1, 1
	case Denied:
		return 2, 3
	}
	return 2, 2
}

func ocsfActor(r *Record) object {
	actor := object{"user": ocsfUser(r)}
	if r.Executable != "" {
		actor["process"] = object{"name": r.Executable[strings.LastIndexByte(r.Executable, '/')+1:], "file": object{
			"name": r.Executable[strings.LastIndexByte(r.Executable, '/')+1:], "path": r.Executable, "type_id": 1}}
	}
	return actor
}

func ocsfUser(r *Record) object {
	switch {
	case r.PrincipalName == "" && r.Principal == "" && r.Action != "" && strings.HasPrefix(r.Action, "audit."):
		return object{"name": "claviger", "type_id": 3, "type": "System"}
	case r.PrincipalName == "" && r.Principal == "":
		return object{"name": "unidentified", "type_id": 0, "type": "Unknown"}
	}
	user := object{"type_id": 99, "type": r.PrincipalKind}
	if r.PrincipalKind == string(claviger.Operator) {
		user["type_id"], user["type"] = 2, "Admin"
	}
	if r.PrincipalName != "" {
		user["name"] = r.PrincipalName
	}
	if r.Principal != "" {
		user["uid"] = string(r.Principal)
	}
	return user
}

// ocsfEndpoint says where the call came from; without an address it is the
// local socket, or the server itself.
func ocsfEndpoint(r *Record) object {
	switch {
	case r.Source != "":
		return object{"ip": r.Source}
	case r.Method != "":
		return object{"name": "localhost", "interface_name": "unix socket"}
	}
	return object{"name": "localhost", "svc_name": "claviger"}
}

// ocsfEntity is what the action is about: a key when there is one, or else
// what the action's noun names.
func ocsfEntity(r *Record) object {
	noun, _, _ := strings.Cut(r.Action, ".")
	entity := object{"type": noun, "name": noun}
	switch {
	case noun == "grant" && r.Grant != "":
		entity["uid"] = string(r.Grant)
	case r.Key != "" || r.KeyID != "":
		entity["type"] = "key"
		if r.Key != "" {
			entity["name"] = string(r.Key)
		}
		if r.KeyID != "" {
			entity["uid"] = string(r.KeyID)
		}
		if r.Version > 0 {
			entity["version"] = strconv.FormatUint(uint64(r.Version), 10)
		}
	}
	return entity
}

// ocsfUnmapped holds the members that have no attribute of their own.
func ocsfUnmapped(r *Record) object {
	u := object{"outcome": string(r.Outcome)}
	for name, value := range map[string]string{
		"method": r.Method, "unit": r.Unit, "algorithm": string(r.Algorithm), "digest": r.Digest, "grant": string(r.Grant), "request_id": r.RequestID,
	} {
		if value != "" {
			u[name] = value
		}
	}
	if !r.Fingerprint.IsZero() {
		u["fingerprint"] = r.Fingerprint.String()
	}
	if r.UID >= 0 {
		u["uid"] = r.UID
	}
	for name, value := range r.Detail {
		u["detail_"+name] = value
	}
	return u
}
