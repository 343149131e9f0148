# make demo    build the tool, quantize the bundled diffusion model (needs only a C compiler)
# make test    set up what the tests need and run all of them
# make bench   build and run the benchmarks
# make aq      build/aq, the command-line tool
# make headers src/ -> arrowquant.h, arrowquant_simd.h
# make check   fail when those two are stale
# make clean   remove build/

CFLAGS ?= -O2
LDLIBS ?= -lpthread -lm
PYTHON ?= python3

benches := $(patsubst bench/%.c,build/bench/%,$(wildcard bench/*.c))

.PHONY: all demo test bench aq headers check clean

all: aq

demo: aq
	sh examples/demo.sh

test:
	$(PYTHON) tests/run.py

bench: $(benches)
	@for program in $(benches); do echo "== $$program"; $$program || exit 1; done

aq: build/aq

headers:
	$(PYTHON) amalgamate.py

check:
	$(PYTHON) amalgamate.py --check

clean:
	rm -rf build

build/aq: examples/aq.c arrowquant.h
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -I. $(CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

build/bench/%: bench/%.c arrowquant.h arrowquant_simd.h
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -I. $(CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)
