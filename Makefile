# `make run` starts Signalbox, `make test` tests it. The other targets are for who works on it.
SHELL := /bin/bash
PYTHON := .venv/bin/python
export SIGNALBOX_DEMO ?= 1

.PHONY: help run dev test prove check lint format bench bench-peers bench-load bench-page demo-traffic screenshots reset

help: ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## /make \1|/p' $(MAKEFILE_LIST) | column -t -s '|'

run: ## install what is missing and run Signalbox here (Ctrl-C stops it)
	@scripts/venv.sh product
	@exec $(PYTHON) manage.py up

dev: ## the same, starting parts again when a file changes
	@scripts/venv.sh product
	@exec $(PYTHON) manage.py up --reload

test: ## everything that has to pass: lint, types, migrations, tests on real services and a real browser
	@scripts/venv.sh tests
	@scripts/test.sh test

prove: ## the long proofs that `make test` leaves out: every radiograph, every asker, drift of the demo, killed workers
	@scripts/venv.sh tests
	@.venv/bin/pytest -n 2 --dist loadfile -m long

check: ## lint, types and unit tests, without any service; under a minute
	@scripts/venv.sh tests
	@scripts/test.sh check

lint: ## ruff and mypy alone
	@scripts/venv.sh tests
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

format: ## let ruff mend and format the code
	@scripts/venv.sh tests
	@.venv/bin/ruff check --fix . && .venv/bin/ruff format .

bench: ## measure the running product beside bare servers (docs/performance.md); ARGS=--quick shows that it works
	@scripts/venv.sh tests
	@exec $(PYTHON) -m benchmarks bench $(ARGS)

bench-peers: ## the same beside its peers, each installed below ~/.cache/signalbox-bench
	@scripts/venv.sh tests
	@exec $(PYTHON) -m benchmarks peers $(ARGS)

bench-load: ## the tail of an open loop, neighbours, two processes, overload
	@scripts/venv.sh tests
	@for measure in open neighbours processes overload; do $(PYTHON) -m benchmarks $$measure $(ARGS) || failed=1; done; exit $${failed:-0}

bench-page: ## draw the kept figures (docs/performance.json) as docs/build/performance.html
	@scripts/venv.sh tests
	@exec $(PYTHON) -m benchmarks page

demo-traffic: ## send the demo's calls to a running Signalbox
	@scripts/venv.sh product
	@exec $(PYTHON) manage.py demo_traffic

screenshots: ## draw the pictures of the documentation from a running product
	@scripts/venv.sh tests
	@exec $(PYTHON) -m scripts.screenshots

reset: ## delete all state of this home ($SIGNALBOX_HOME, default var/); asks first
	@scripts/venv.sh product
	@exec $(PYTHON) -m controlplane.local.reset
