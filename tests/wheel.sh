#!/usr/bin/env bash
# The wheel as its user has it: built from this checkout, installed into the active environment, used outside of the checkout.
# Then the same commands from an editable install, which stays. pip must be able to fetch hatchling, and what is not there yet.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH MINIFT_WEIGHTS
export XDG_CACHE_HOME=$work/cache

fail() { echo "wheel.sh: $*" >&2; exit 1; }
has() { grep -qF -- "$2" <<<"$1" || fail "no '$2' in: $1"; }

pip wheel -q --no-deps -w "$work/dist" .
listed=$(python -m zipfile -l "$work"/dist/*.whl)
for file in minift/train.py minift/convert.py minift/weights/README.md minift/weights/minilm-l6/model.safetensors \
    minift/weights/efficientnet-lite0/model.safetensors licenses/LICENSE; do
    has "$listed" "$file"
done
pip install -q "$work"/dist/*.whl
cd "$work"
site=$(python -c 'import minift, pathlib; print(pathlib.Path(minift.__file__).parent.parent)')
test "$site" != "$checkout" || fail "the checkout is imported, not the wheel"

has "$(minift-convert --help)" "usage: minift-convert"
head -n 101 "$site/minift/samples/reviews.tsv" > rows.tsv
minift-train --train rows.tsv --epochs 0 --max-length 16 --out run > train.log
has "$(minift-predict run good)" good
has "$(minift-evaluate run --data rows.tsv)" accuracy
minift-report run > report.log
test -s run/report.html || has "$(cat report.log)" matplotlib  # without it the report is printed
has "$(minift-trace --train rows.tsv --max-length 16 --batch-size 4)" loss
has "$(minift-generate --help)" "usage: python -m minift.generate"
has "$(minift-prompting --help)" "usage: python -m minift.prompting"
minift-convert run --to hf --out hf > /dev/null
has "$(minift-convert hf)" "written  $work/cache/minift/hf"
minift-train --train rows.tsv --model hf --epochs 0 --max-length 16 --out refused 2> refused.log && fail "took an unconverted directory"
has "$(cat refused.log)" "minift-convert hf"
minift-train --train rows.tsv --model "$work/cache/minift/hf" --epochs 0 --max-length 16 --out again > /dev/null
has "$(minift-train --model no-such 2>&1 || true)" "minift-convert no-such"
test ! -e "$site/weights" || fail "something was written to $site/weights"

pip uninstall -q -y minift
pip install -q --no-deps -e "$checkout"
has "$(python -c 'import minift; print(minift.__file__)')" "$checkout"
has "$(minift-convert --help)" "usage: python convert.py"
minift-train --train rows.tsv --epochs 0 --max-length 16 --out editable > /dev/null
has "$(minift-predict editable good)" good
echo "wheel.sh: passed"
