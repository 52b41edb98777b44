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

SANITIZED := g++ -std=c++17 -O0 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-psabi -pthread \
	-DPK_EMULATED -DPK_HAS_AVX512_BF16 -DPK_HAS_AMX -Ipenstock/kernels/cpu

sanitize:  ## the native step under the address and undefined-behaviour sanitizers
	@mkdir -p build
	for name in portable avx512_bf16 amx pool memory search model sets; do \
		$(SANITIZED) -c penstock/kernels/cpu/$$name.cpp -o build/sanitized.$$name.o || exit 1; done
	$(SANITIZED) tests/kernels/sanitized.cpp build/sanitized.*.o -o build/sanitized
	$(SANITIZED) tests/kernels/half.cpp build/sanitized.*.o -o build/half
	build/sanitized
	build/half
