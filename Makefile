# Every target sets up what it needs (see tools/setup) and can be run from a fresh clone.
# PYTHON=/path/to/python3.x chooses the interpreter of the virtual environment.

SHELL := /bin/bash
PY := .venv/bin/python
PACKAGES := kubecore ipvsproxy dnsserver tests tools

.PHONY: help setup test lint types unit kernel bench bench-watch bench-dns bench-proxy demo format image reference lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Python packages only
	@tools/setup base

test: setup-test lint types kernel  ## everything: lint, types, and the whole suite, kernel tests included
	$(PY) -m pytest -q $(PYTEST_ARGS)

.PHONY: setup-test
setup-test:
	@tools/setup base lab peers image

lint: setup  ## ruff format and check, import-linter
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports

types: setup  ## mypy, strict
	.venv/bin/mypy

format: setup  ## rewrite the code in the project's format
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

kernel: setup  ## a kernel with IPVS for tests: the host's, else user-mode Linux, built once (about 5 minutes) and cached
	@tools/setup base lab
	@$(PY) -m tests.lab.kernel.build

bench: bench-watch bench-proxy bench-dns  ## all benchmarks, with tables

bench-watch: setup
	$(PY) -m tests.bench.bench_watch

bench-dns: setup-test  ## the DNS server beside NSD, unbound and dnsmasq
	$(PY) -m tests.bench.bench_dns

bench-proxy: kernel  ## the proxy beside pre-encoded netlink messages, in a freshly booted lab kernel
	$(PY) -m tests.bench.bench_proxy

demo: kernel  ## the main job, live: a small cluster's service network (MANIFESTS=dir, KEEP=1)
	@$(PY) -m tests.demo $(if $(MANIFESTS),--manifests "$(MANIFESTS)") $(if $(KEEP),--keep)

image: setup  ## the images' roots without Docker, and their sizes (needs root and debootstrap)
	@tools/setup base image
	@$(PY) -m tests.charts.rootfs

reference: setup  ## what is made of the code: charts' READMEs, schemas and dashboards, docs of metrics and the Corefile
	$(PY) -m tools.charts
	$(PY) -m tools.reference

lock: setup  ## renew the lock files within the bounds of pyproject.toml
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade \
	  pyproject.toml -o requirements.lock
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade \
	  --extra dev pyproject.toml -o requirements-dev.lock

clean:  ## what the targets made inside the tree
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
