# make demo    build the tool, quantize the bundled diffusion model (needs only a C compiler)
# make test    set up what the tests need and run all of them
# make bench   build and run the benchmarks
# make bench-kernels   the kernels beside ggml, NumPy, PyTorch and memset; Markdown (docs/PERFORMANCE.md)
# make aq      build/aq, the command-line tool
# make headers src/ -> arrowquant.h, arrowquant_simd.h
# make check   fail when those two are stale
# make clean   remove build/
# make fuzz    10^7 executions of each fuzz target (RUNS=…, TARGETS="json yaml"); an hour and more
# make test-cross   every machine, compiler flag and emulated CPU of tests/cross.py; half an hour
# make test-groups  10^8 random groups of weights on every ISA; hours, but it goes on where it was stopped
# make test-tools   every C test under TSan and valgrind, the tool under both and ASan; half an hour
# make coverage     branch coverage of src/ by the C tests and runs of the tool
# make install PREFIX=/usr/local   headers, the tool, pkg-config and CMake files; DESTDIR too
# make bench-python    calls of the Python module beside C, NumPy, optimum-quanto and torchao (docs/PYTHON.md)
# make bench-trellis   trellis codes beside ggml's types of 2 to 4 bits (docs/QUALITY.md); AQ_GGML=FOLDER for these
# make bench-scale   7 billion parameters: time and peak memory (14 GB of disk and more, minutes)

CFLAGS ?= -O2
LDLIBS ?= -lpthread -lm
PYTHON ?= python3

benches := $(patsubst bench/%.c,build/bench/%,$(wildcard bench/bench_*.c))

.PHONY: all demo test fuzz test-cross test-groups test-tools coverage bench bench-kernels bench-python bench-trellis bench-scale aq headers check clean install

all: aq

demo: aq
	sh examples/demo.sh

test:
	$(PYTHON) tests/run.py

test-cross:
	$(PYTHON) tests/cross.py

test-groups:
	$(PYTHON) tests/groups.py

test-tools: build/venv
	AQ_TOOLS=all build/venv/bin/python -m pytest -q -n auto -p no:cacheprovider tests/py/test_tools.py

fuzz: headers
	sh tests/fuzz/run.sh

coverage:
	$(PYTHON) tests/coverage.py

bench: $(benches) aq build/venv
	@for program in $(benches); do echo "== $$program"; $$program || exit 1; done
	@echo "== bench/activations.py"; build/venv/bin/python bench/activations.py
	@echo "== bench/quality.py"; build/venv/bin/python bench/quality.py
	@echo "== bench/trellis.py"; build/venv/bin/python bench/trellis.py
	@echo "== bench/gptq.py"; build/venv/bin/python bench/gptq.py
	@echo "== bench/python_calls.py"; $(MAKE) -s bench-python

aq: build/aq

headers:
	$(PYTHON) amalgamate.py

check:
	$(PYTHON) amalgamate.py --check

clean:
	rm -rf build

PREFIX ?= /usr/local
VERSION = $(shell sed -n 's/^\#define AQ_VERSION "\(.*\)"/\1/p' src/api/arrowquant_api.h)
fill = sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|'
installed = $(DESTDIR)$(PREFIX)

install: aq
	mkdir -p $(installed)/bin $(installed)/include $(installed)/lib/pkgconfig $(installed)/lib/cmake/arrowquant
	install -m 755 build/aq $(installed)/bin/aq
	install -m 644 arrowquant.h arrowquant_simd.h $(installed)/include
	$(fill) packaging/arrowquant.pc.in > $(installed)/lib/pkgconfig/arrowquant.pc
	for file in Config ConfigVersion; do $(fill) packaging/arrowquant$$file.cmake.in \
	    > $(installed)/lib/cmake/arrowquant/arrowquant$$file.cmake || exit 1; done

bench-kernels: aq build/venv
	build/venv/bin/pip install --quiet --no-deps -r bench/requirements.txt
	build/venv/bin/python bench/kernels.py

# Module and peers in folders of their own: the tests' environment stays as it is.
bench-python: build/venv
	build/venv/bin/pip install --quiet --no-deps --no-build-isolation --upgrade --target build/bench/module .
	-build/venv/bin/pip install --quiet --no-deps --upgrade --target build/bench/peers \
	    -r bench/requirements-python.txt
	PYTHONPATH=build/bench/module:build/bench/peers build/venv/bin/python bench/python_calls.py

bench-trellis: build/venv
	build/venv/bin/python bench/trellis.py

bench-scale: aq build/venv
	build/venv/bin/python bench/scale.py

build/venv:
	$(PYTHON) tests/run.py --set-up

build/aq: examples/aq.c arrowquant.h
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -I. $(CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

build/bench/%: bench/%.c arrowquant.h arrowquant_simd.h
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -I. $(CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)
