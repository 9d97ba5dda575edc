package keeper_test

const crashDir = "CLAVIGER_CRASH_DIR"

func crash() int { return 1 }
