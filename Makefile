# ForgeOne: `make` lists what there is to do.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
# Pods are root's to run; everything else is done as whoever calls make.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# Arguments of the bench.
BENCH ?=
# Arguments of the soak.
SOAK ?=
# Arguments of hack.kind's up.
KIND ?=
# Arguments of pytest in the guest (and --driver, --shell; see hack/guest).
E2E ?=
PROTOS := $(wildcard cri/api/*.proto forgeone_shim/rpc/*.proto)
# What virtual machines boot is made from these.
GUEST := $(wildcard engines/microvm/guest/*.[ch] engines/microvm/boot/*.py)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.project $(VENV)/.stubs $(VENV)/.boot ## system packages, .venv, and a host that can run pods
	@$(SUDO) $(BIN)/forge doctor --fix --quiet || echo "setup: this host cannot run pods yet; see above" >&2

.PHONY: run
run: setup ## a pod on each engine, from a registry, prints its log line
	@$(SUDO) $(BIN)/python -m hack.demo

.PHONY: test
test: setup ## every test, those that need root too
	@$(SUDO) $(BIN)/python -m hack.tests

.PHONY: unit
unit: setup ## the tests that need no root
	@$(BIN)/python -m pytest tests/unit

.PHONY: e2e
e2e: setup ## the tests that need root
	@# Those of a cluster are asked for by name: KUBECONFIG may lead to one that is in use.
	@$(SUDO) $(BIN)/python -m pytest -p no:cacheprovider --ignore tests/e2e/cluster tests/e2e

.PHONY: e2e-v2
e2e-v2: setup ## those in a guest with systemd and cgroup v2; E2E="tests/e2e/test_usage.py -k x"
	@$(SUDO) $(BIN)/python -m hack.guest $(E2E)

.PHONY: cluster
cluster: setup ## the tests of a Kubernetes cluster, against that of KUBECONFIG
	@$(BIN)/python -m pytest -p no:cacheprovider tests/e2e/cluster

.PHONY: kind
kind: setup ## a kind cluster whose nodes run ForgeOne, the chart on it, and its tests; KIND="--mode replace"
	@$(BIN)/python -m hack.kind up $(KIND)
	@$(BIN)/python -m hack.kind install
	@$(BIN)/python -m hack.kind test

.PHONY: chart
chart: setup ## write what of the chart is made from the code
	@$(BIN)/python -m hack.chart

.PHONY: fmt
fmt: setup ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix-only --quiet .

.PHONY: lint
lint: setup ## style and common mistakes
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

.PHONY: types
types: setup ## mypy --strict
	@$(BIN)/mypy --strict

.PHONY: imports
imports: setup ## which room may import which
	@$(BIN)/lint-imports

.PHONY: reference
reference: setup ## write the generated parts of docs: configuration, annotations, commands
	@$(BIN)/python -m hack.reference

.PHONY: pictures
pictures: setup ## take the pictures of forge in docs anew
	@$(SUDO) $(BIN)/python -m hack.pictures

.PHONY: bundle
bundle: setup ## what nodes are given, in dist: an archive, a Debian package, an OCI image
	@$(BIN)/python -m hack.bundle --deb --image

.PHONY: bench
bench: setup ## a pod's life in milliseconds, beside containerd; BENCH="--help" shows more
	@$(SUDO) $(BIN)/python -m hack.bench.debian $(BENCH)

.PHONY: soak
soak: setup ## random pods while forgeoned is killed at random; SOAK="--minutes 30 --workers 8"
	@$(SUDO) $(BIN)/python -m hack.soak $(SOAK)

.PHONY: lock
lock: ## resolve the dependencies anew and pin them with their hashes
	@hack/lock $(BIN)/python

.PHONY: clean
clean: ## remove what was made here
	@# Of what the tests made, some is root's.
	$(SUDO) rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -f $(foreach proto,$(PROTOS),$(proto:.proto=_pb2.py) $(proto:.proto=_pb2.pyi) $(proto:.proto=_pb2_grpc.py))
	$(SUDO) find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What follows is done once, and again when what it is made from has changed.

$(BIN)/python: | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ForgeOne needs Python 3.11 or later; this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

.PHONY: packages
packages:
	@hack/packages $(SUDO)

$(VENV)/.dependencies: requirements/dev.lock | $(BIN)/python
	$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@

$(VENV)/.project: pyproject.toml setup.py $(VENV)/.dependencies
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.stubs: $(PROTOS) cri/api/build.py $(VENV)/.dependencies
	$(BIN)/python -m cri.api.build
	@touch $@

$(VENV)/.kernel: hack/kernel | $(BIN)/python
	@hack/kernel $(SUDO) && touch $@ || echo "setup: no kernel for virtual machines could be brought" >&2

$(VENV)/.boot: $(GUEST) $(VENV)/.project $(VENV)/.kernel
	@$(SUDO) $(BIN)/forge microvm build >/dev/null && touch $@ || echo "setup: virtual machines have nothing to boot; see above" >&2
