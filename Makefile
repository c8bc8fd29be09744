# Everything runs in .venv, which `make env` makes once; an environment that exists is reused.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The site opens from its folder, offline; a warning is an error.
export NO_MKDOCS_2_WARNING := 1

.PHONY: env demo docs test test-all lint audit peers bench bench-quick clean

env: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: env
	$(BIN)/python -m lightning_interp.cli demo $(ARGS)

docs: env
	$(BIN)/python -m mkdocs build --strict --quiet

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" --doctest-modules lightning_interp tests

test-all: env
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -q --doctest-modules lightning_interp tests

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: env
	$(BIN)/python .ci/audit

# The packages that are measured beside this one are wanted here alone.
peers: env
	$(BIN)/python -c "import captum" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'

# Hours; what has its rows already is not run again. The last line writes the tables of README and docs.
bench: peers
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/fidelity.py
	$(BIN)/python benchmarks/truth.py
	$(BIN)/python benchmarks/suppression.py
	$(BIN)/python benchmarks/suppression.py --task demo --agreement 0.99
	$(BIN)/python benchmarks/mediation.py
	$(BIN)/python benchmarks/mediation.py --task coloured
	$(BIN)/python benchmarks/cutting.py
	$(BIN)/python benchmarks/cutting.py --task coloured
	$(BIN)/python benchmarks/discovery.py
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/step_cost.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/tables.py

bench-quick: peers
	$(BIN)/python benchmarks/fidelity.py --quick
	$(BIN)/python benchmarks/scaling.py --quick
	$(BIN)/python benchmarks/truth.py --quick
	$(BIN)/python benchmarks/peers.py --quick

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
