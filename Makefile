# Everything runs in .venv, made from Python >= 3.11 and a package index.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint bench docs install clean native sanitize
.DEFAULT_GOAL := run

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		(echo "penstock needs Python 3.11 or newer: run make PYTHON=/path/to/python3.11" && exit 1)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,plot,serve,video,gpu]'
	@touch $@

run: install  ## the tiny model reads the standard library: a live dashboard, a table, a plot
	$(BIN)/penstock run

# Three at a time on two cores: one mostly waits for processes of its own.
test: lint  ## lint, types, generated documents, laws and tests
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -n 3

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m docs.generate --check

docs: install  ## rewrite the generated documents
	$(BIN)/python -m docs.generate

bench: install  ## the figures in docs/benchmarks, about an hour on two idle cores
	$(BIN)/python -m bench.steady --plot docs/benchmarks/steady.png
	$(BIN)/python -m bench.rows
	$(BIN)/python -m bench.ingest
	$(BIN)/python -m bench.endless

clean:
	rm -rf .venv build *.egg-info

native: install  ## the native step, built again
	$(BIN)/python setup.py -q build_ext --inplace

sanitize:  ## the native step under the address and undefined-behaviour sanitizers
	@mkdir -p build
	g++ -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-psabi -pthread \
		-Ipenstock/kernels/cpu tests/kernels/sanitized.cpp penstock/kernels/cpu/pool.cpp penstock/kernels/cpu/memory.cpp \
		penstock/kernels/cpu/model.cpp penstock/kernels/cpu/sets.cpp penstock/kernels/cpu/portable.cpp -o build/sanitized
	build/sanitized
