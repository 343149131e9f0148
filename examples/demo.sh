#!/bin/sh
# Quantizes the bundled diffusion model with each profile, validates each result against the
# original, and prints what came out. Run by `make demo`, which builds build/aq first.
set -eu
LC_ALL=C
export LC_ALL

cd "$(dirname "$0")/.."
aq=build/aq
model=tests/fixtures/digits-dit
out=build/demo.$$
tab=$(printf '\t')

trap 'rm -rf "$out"' EXIT
trap 'exit 130' INT TERM HUP PIPE
mkdir -p "$out"

echo "$model: a class-conditional diffusion transformer, 1,424,772 parameters in BF16"
echo
printf '%-8s %5s %12s %10s %6s %9s %9s %7s %5s  %s\n' profile bits 'bits/weight' 'size MB' \
       ratio cosine 'SQNR dB' time kept validated
for profile in edge local cloud; do
    $aq quantize "$model" "$out/$profile" --profile "$profile" --tsv --quiet > "$out/result"
    verdict=passed
    $aq validate "$model" "$out/$profile" --quiet || verdict='NOT PASSED'
    $aq inspect "$out/$profile" --verify --quiet || verdict='CHECKSUMS DIFFER'
    # the line of names, then the line of values
    { read -r names; IFS=$tab read -r path ratio cosine size modality bits seconds stored sqnr \
          quantized kept raised; } < "$out/result"
    printf '%-8s %5d %12.3f %10.3f %6.2f %9.6f %9.2f %6.2fs %5d  %s\n' "$profile" "$bits" \
           "$stored" "$size" "$ratio" "$cosine" "$sqnr" "$seconds" "$kept" "$verdict"
    [ "$verdict" = passed ] || exit 1
done

echo
echo "bits/weight counts the codes and all parameters of the quantized layers; ratio is the whole"
echo "weight file, kept layers included. What was kept, and why (local profile):"
$aq quantize "$model" --dry-run --profile local | sed -n '/^not quantized/,$p' | sed 1d
