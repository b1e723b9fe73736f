#!/usr/bin/env bash
# The whole pipeline on the four embedded clips: proxy, curation, router, final tokenizer, generator,
# evaluation, report. Start it again after an interruption and it continues where it was.
#
#   ./launch/quickstart.sh [--workdir DIR]
set -euo pipefail
workdir=runs/quickstart
while [ $# -gt 0 ]; do
    case $1 in
        --workdir) workdir=$(realpath -m "${2:?--workdir needs a folder}"); shift 2 ;;
        *) echo "usage: $0 [--workdir DIR]" >&2; exit 2 ;;
    esac
done
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
installed=$SECONDS
evatok assets
export EVATOK_BEFORE="install=$installed assets=$((SECONDS - installed))"
python -m evatok_jax.main --config=configs/pipeline.py --workdir="$workdir"
