#!/bin/sh
# Long fuzzing: `make fuzz` (RUNS executions of each target, 10^7 unless given; TARGETS to choose).
# Corpora stay in build/fuzz/corpus; a finding stops the target and lies in build/fuzz.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p build/fuzz
flags="-g1 -O1 -fno-sanitize-recover=all"
printf '#define ARROWQUANT_IMPLEMENTATION\n#include "arrowquant.h"\n' > build/fuzz/arrowquant.c
clang $flags -fsanitize=fuzzer-no-link,address,undefined -I. -DAQ_LIB=extern -DAQ_SIMD_LIB=extern \
    -c build/fuzz/arrowquant.c -o build/fuzz/arrowquant.o
for source in tests/fuzz/fuzz_*.c; do
    target=$(basename "$source" .c | cut -c6-)
    case " ${TARGETS:-$target} " in *" $target "*) ;; *) continue ;; esac
    clang $flags -fsanitize=fuzzer,address,undefined "$source" build/fuzz/arrowquant.o \
        -o "build/fuzz/$target" -lm -lpthread
    mkdir -p "build/fuzz/corpus/$target"
    begin=$(date +%s)
    "build/fuzz/$target" -runs="${RUNS:-10000000}" -max_len=512 -artifact_prefix=build/fuzz/ \
        "build/fuzz/corpus/$target" "tests/fuzz/seeds/$target" > "build/fuzz/$target.log" 2>&1 ||
        { tail -40 "build/fuzz/$target.log"; exit 1; }
    echo "$target: $(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "build/fuzz/$target.log") executions," \
         "0 crashes, $(($(date +%s) - begin)) s"
done
