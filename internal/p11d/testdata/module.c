/* A PKCS#11 module for tests: it passes everything on to SoftHSM, but for what
 * the file that SHIM_MODE names says. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "pkcs11go.h"

static CK_FUNCTION_LIST_PTR real;
static CK_FUNCTION_LIST ours;

static int mode(const char *want) {
	char buf[64] = "";
	const char *path = getenv("SHIM_MODE");
	FILE *f = path ? fopen(path, "r") : NULL;
	if (!f)
		return 0;
	if (!fgets(buf, sizeof buf, f))
		buf[0] = 0;
	fclose(f);
	buf[strcspn(buf, "\n")] = 0;
	return strcmp(buf, want) == 0;
}

static void note(const char *what) {
	char path[4096];
	FILE *f;
	snprintf(path, sizeof path, "%s.%s", getenv("SHIM_MODE"), what);
	if ((f = fopen(path, "a"))) {
		fputs("x", f);
		fclose(f);
	}
}

static CK_RV my_Sign(CK_SESSION_HANDLE s, CK_BYTE_PTR data, CK_ULONG n, CK_BYTE_PTR sig, CK_ULONG_PTR len) {
	if (mode("crash"))
		abort();
	if (mode("hang")) {
		note("hung");
		for (;;)
			pause();
	}
	if (mode("unplug"))
		return CKR_DEVICE_REMOVED;
	if (mode("logout"))
		return CKR_USER_NOT_LOGGED_IN;
	CK_RV rv = real->C_Sign(s, data, n, sig, len);
	if (rv == CKR_OK && sig && mode("lie"))
		sig[*len - 1] ^= 1;
	return rv;
}

static CK_RV my_Login(CK_SESSION_HANDLE s, CK_USER_TYPE who, CK_UTF8CHAR_PTR pin, CK_ULONG n) {
	note("logins");
	if (mode("pin-locked"))
		return CKR_PIN_LOCKED;
	return real->C_Login(s, who, pin, n);
}

static CK_RV my_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info) {
	if (mode("unplug"))
		return CKR_TOKEN_NOT_PRESENT;
	CK_RV rv = real->C_GetTokenInfo(slot, info);
	if (rv == CKR_OK && mode("final-try"))
		info->flags |= CKF_USER_PIN_FINAL_TRY;
	if (rv == CKR_OK && mode("hardware")) {
		memset(info->manufacturerID, ' ', sizeof info->manufacturerID);
		memcpy(info->manufacturerID, "Acme", 4);
		memset(info->model, ' ', sizeof info->model);
	}
	return rv;
}

static CK_RV my_GetInfo(CK_INFO_PTR info) {
	CK_RV rv = real->C_GetInfo(info);
	if (rv == CKR_OK && mode("hardware")) {
		memset(info->manufacturerID, ' ', sizeof info->manufacturerID);
		memset(info->libraryDescription, ' ', sizeof info->libraryDescription);
	}
	return rv;
}

static CK_RV my_GetSlotInfo(CK_SLOT_ID slot, CK_SLOT_INFO_PTR info) {
	CK_RV rv = real->C_GetSlotInfo(slot, info);
	if (rv == CKR_OK && mode("hardware")) {
		memset(info->manufacturerID, ' ', sizeof info->manufacturerID);
		memset(info->slotDescription, ' ', sizeof info->slotDescription);
	}
	return rv;
}

static CK_RV my_GetAttributeValue(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, CK_ATTRIBUTE_PTR t, CK_ULONG n) {
	CK_RV rv = real->C_GetAttributeValue(s, o, t, n);
	for (CK_ULONG i = 0; rv == CKR_OK && i < n; i++) {
		if (t[i].type == CKA_EXTRACTABLE && t[i].pValue && mode("extractable"))
			*(CK_BYTE *)t[i].pValue = 1;
		if (t[i].type == CKA_TRUSTED && t[i].pValue && mode("trusted"))
			*(CK_BYTE *)t[i].pValue = 1;
	}
	return rv;
}

static CK_RV my_GenerateKey(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR t, CK_ULONG n, CK_OBJECT_HANDLE_PTR o) {
	if (mode("trusted"))
		for (CK_ULONG i = 0; i < n; i++)
			if (t[i].type == CKA_TRUSTED)
				t[i--] = t[--n];
	return real->C_GenerateKey(s, m, t, n, o);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
	void *lib = dlopen(SOFTHSM, RTLD_NOW | RTLD_LOCAL);
	CK_C_GetFunctionList get = lib ? (CK_C_GetFunctionList)dlsym(lib, "C_GetFunctionList") : NULL;
	if (!get || get(&real) != CKR_OK)
		return CKR_GENERAL_ERROR;
	ours = *real;
	ours.C_Sign = my_Sign;
	ours.C_Login = my_Login;
	ours.C_GetInfo = my_GetInfo;
	ours.C_GetSlotInfo = my_GetSlotInfo;
	ours.C_GetTokenInfo = my_GetTokenInfo;
	ours.C_GetAttributeValue = my_GetAttributeValue;
	ours.C_GenerateKey = my_GenerateKey;
	*list = &ours;
	return CKR_OK;
}
