#!/usr/bin/env bash
# Sets itself up and passes the tests. --all adds the long ones. Further arguments go to pytest.
set -euo pipefail
select=(-m "not all")
if [ "${1:-}" = --all ]; then
    select=()
    shift
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
evatok assets
export EVATOK_FETCHED=1  # nothing is skipped for want of assets
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# Tests compile more than they compute: programs that LLVM does not polish are there in less than
# half the time.
quick="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
export XLA_FLAGS=${XLA_FLAGS:-$quick}
ruff check .
ruff format --check .
# Compilation is most of the work and takes one core: each file's tests go to one of some processes.
python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
    "${select[@]}" "$@"
