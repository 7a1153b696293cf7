PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo serve bench-quick k8s-check test test-slow lint clean

# Serve the packaged demo bundle, send it edits, write the pictures to out/demo.png.
demo: .venv/.installed
	$(BIN)/fashion-rag demo run --out out/demo.png

# Serve the demo bundle on http://127.0.0.1:8000 until Ctrl-C.
serve: .venv/.installed
	$(BIN)/fashion-rag serve

# Latency at two loads, for before and after a change; then `python -m benchmarks.compare OLD NEW`. Under 5 minutes.
bench-quick: .venv/.installed
	$(BIN)/fashion-rag bench --rate 0.5,1 --duration 60 --steps 10,20 --garments 0,1,3 --repeat-person 0.3 \
	    --out out/bench.json --plot out/bench.png

# The manifests, without a cluster.
k8s-check: .venv/.installed
	$(BIN)/python -m k8s.checks

test: lint
	$(BIN)/pytest

# Everything that runs on a CPU: also the tests that start a cluster or train.
test-slow: lint
	$(BIN)/pytest -m "not gpu"

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

clean:
	rm -rf out .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (several GB on the first run) ..."
	$(BIN)/pip install --quiet --quiet --editable ".[dev]"
	touch $@
