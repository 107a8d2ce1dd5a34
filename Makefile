# The one way to run anything here; CI calls nothing else. `make` alone lists what there is.
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
run: ## Builds and starts the demo: flags on http://localhost:8000, no account needed
	$(CARGO) run --release --quiet -- demo

build: ## Builds the release executable, target/release/edge-proxy
	$(CARGO) build --release --locked

# --- check ---

.PHONY: test tidy fmt lint ci
test: .venv/tests/made-from.txt ## Runs every test: needs Rust and Python 3.11 or newer, nothing else
	$(CARGO) test --locked

tidy: ## Runs the house rules alone
	$(CARGO) test --locked --test tidy

fmt: ## Fails if a file is not formatted
	$(CARGO) fmt --check

lint: ## Fails on any warning of clippy
	$(CARGO) clippy --locked --all-targets -- --deny warnings

ci: fmt lint test ## What must pass before a change lands

.venv/tests/made-from.txt: tests/requirements.txt scripts/venv
	scripts/venv tests tests/requirements.txt
	@touch $@
