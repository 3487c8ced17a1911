# Needs Python 3.11 or newer with venv and pip, and make. PYTHON and VENV choose another interpreter and environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock" $(UPGRADE)

.PHONY: run test check fmt fuzz bench bench-quick lock lock-peers dist clean

run: $(VENV)/.run  ## ARGS="--config FILE": without, the packaged policy on 127.0.0.1:3128
	exec $(BIN)/egress-proxy serve $(ARGS)

test: $(VENV)/.dev  ## ARGS="tests/test_x.py -k name"
	$(BIN)/python -m pytest -n auto $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fmt: $(VENV)/.dev
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

fuzz: $(VENV)/.dev  ## ARGS="--times 1000": every property with so many times as many random examples
	$(BIN)/python -m pytest -n auto -m hypothesis --timeout 3600 --times 50 $(ARGS)

bench: $(VENV)/.dev  ## ARGS="--quick --peers ours,squid": installs what it compares with, then measures
	PYTHON=$(PYTHON) bash benchmarks/install
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(VENV)/.dev  ## fails when a figure has become dear beside Squid's, or the floor's where that is absent
	$(BIN)/python -m benchmarks.gate

lock: $(VENV)/.dev  ## UPGRADE=--upgrade takes the newest releases
	$(LOCK) pyproject.toml -o requirements/run.txt
	$(LOCK) --group build -c requirements/run.txt -o requirements/build.txt
	$(LOCK) pyproject.toml --group dev -c requirements/run.txt -c requirements/build.txt -o requirements/dev.txt

lock-peers: $(VENV)/.dev  ## what the benchmarks compare with, in an environment of its own
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock-peers" $(UPGRADE) benchmarks/peers/requirements.in -o benchmarks/peers/requirements.txt

dist: $(VENV)/.run
	$(BIN)/python -m hatchling build

clean:
	rm -rf $(VENV) .venv-peers build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# One environment, filled in two steps: `make run` stops at the first. Everything that comes over the network is
# pinned by hash, the build backend included; the project itself is then installed from this tree, offline.
$(VENV)/.run: requirements/run.txt requirements/build.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "egress-proxy needs Python 3.11 or newer, and $(PYTHON) is %d.%d: name another one, as in make PYTHON=python3.13" % v[:2])'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes -r requirements/run.txt -r requirements/build.txt
	$(INSTALL) --no-index --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@
