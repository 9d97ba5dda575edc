# Claviger. `make help` lists the targets.

GO      ?= go
BIN     := bin
FUZZ    ?= 20s
TARGETS ?=
export CGO_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help build demo test race lint budgets fuzz soak bench bench-django bench-rails bench-node bench-php bench-proxy docs generate setup clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the programs into bin/ (a C compiler is needed for claviger-p11d alone)
	$(GO) build -trimpath -o $(BIN)/ ./cmd/claviger ./cmd/claviger-unseal ./cmd/claviger-tpmd
	GOEXPERIMENT=runtimesecret $(GO) build -trimpath -o $(BIN)/ ./cmd/claviger-keyd
	@if command -v "$$($(GO) env CC)" >/dev/null; then \
		echo "CGO_ENABLED=1 $(GO) build -trimpath -o $(BIN)/ ./cmd/claviger-p11d" && \
		CGO_ENABLED=1 $(GO) build -trimpath -o $(BIN)/ ./cmd/claviger-p11d; \
	else \
		echo "build: no C compiler here, so no claviger-p11d: keys in PKCS#11 tokens need it. Install gcc and libc6-dev, and build again." >&2; \
	fi

demo: build ## the main job, step by step, on the embedded store in a temporary directory
	$(GO) run ./test/demo -bin $(BIN)

setup: ## install what the tests need and this machine lacks (Debian), and say so
	@./test/setup

test: setup build ## run every test
	$(GO) vet ./...
	CGO_ENABLED=1 $(GO) test -race -timeout 20m ./...
	CLAVIGER_CHAOS_RUNS=60 $(GO) test -tags failpoints -timeout 20m ./test/chaos/...

lint: ## vet and staticcheck, also with the tags and the C that plain builds leave out
	test -z "$$(gofmt -l $$(git ls-files '*.go'))"
	$(GO) vet ./...
	$(GO) vet -tags failpoints ./...
	CGO_ENABLED=1 $(GO) vet ./internal/p11d/... ./cmd/claviger-p11d
	GOEXPERIMENT=runtimesecret $(GO) vet ./internal/hazmat ./internal/keyd ./cmd/claviger-keyd
	$(GO) tool staticcheck ./...
	CGO_ENABLED=1 $(GO) tool staticcheck ./internal/p11d/... ./cmd/claviger-p11d

budgets: ## file, function, interface and dependency budgets; rooms
	$(GO) test -run 'TestBudgets|TestDependencies|TestRooms|TestSealedClosures|TestForbidden|TestNoPrivateField' -v .

fuzz: ## fuzz targets for FUZZ each (20s): all, or TARGETS of them, chosen by the commit
	@./test/fuzz $(FUZZ) $(TARGETS)

soak: build ## long searches: 500 seeded kills, 200 seeded histories of revocations, an hour of each fuzz target; the next Debian's frameworks
	@./test/soak/second-generation
	CLAVIGER_CHAOS_RUNS=500 $(GO) test -tags failpoints -timeout 12h -v ./test/chaos/...
	CLAVIGER_BOUND_RUNS=200 $(GO) test -timeout 2h -v -run TestRevocationBound ./internal/keeper
	@./test/fuzz 1h

bench: build ## measure, and write docs/benchmarks.md
	$(BIN)/claviger bench --suite --write docs/benchmarks.md
	test/bench-devices docs/benchmarks.md

bench-django: build ## what a request to Django costs with its signing in custody, next to local signing
	/usr/bin/python3 test/sdk/bench_django.py --bin $(BIN)

bench-node: build ## what a request to Express costs with its signing in custody, next to local signing
	node test/sdk/node/bench.mjs $(BIN)

bench-php: build ## what a request to Laravel costs with its APP_KEY in custody, next to a local one
	/usr/bin/php test/sdk/bench_php.php $(BIN)

bench-proxy: ## what 'claviger agent proxy' adds to a request, next to the application itself (as root)
	$(GO) test -run '^$$' -bench Proxy -benchtime 3000x ./test/sdk

bench-rails: build ## what a request to Rails costs with its cookies in custody, next to local ones
	/usr/bin/ruby test/sdk/bench_rails.rb $(BIN)

docs: build ## write the command reference, docs/cli
	$(BIN)/claviger docs --dir docs/cli

generate: ## the API's Go code from its proto files (protoc and its two Go plugins)
	cd api && protoc -I . --go_out=. --go_opt=paths=source_relative \
		--connect-go_out=. --connect-go_opt=paths=source_relative claviger/v1/*.proto

clean: ## remove what was built
	rm -rf $(BIN)
