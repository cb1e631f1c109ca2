#!/usr/bin/env bash
# Everything that needs a GPU, in under nine minutes: the GPU tests, the ceilings, the microbenchmarks, the end-to-end
# benchmark. A short table comes last, and one record in bench/results/<gpu>/<commit>.json, which is never overwritten.
#
#   bench/gpu.sh                 the whole
#   bench/gpu.sh --quick         under two minutes: fewer tests, small cases, one model
#   bench/gpu.sh --rehearse      all steps at tiny sizes on a CPU; the record goes to bench/local, which git ignores
#   bench/gpu.sh --commit HASH   where the checkout has no .git; --python NAME, --output FOLDER
#
# The checkout is installed offline into a folder of its own, so that nothing of the machine changes. Needed there: torch,
# triton, transformers, pytest, pytest-benchmark and setuptools. Each step has a limit in seconds, and one that hangs or
# fails leaves the others' results in the record; but without green tests there is none.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
root=$PWD

mode=full python=python3 commit='' output=$root/bench/results
while (($#)); do
    case $1 in
        --quick) mode=quick ;;
        --rehearse) mode=rehearsal output=$root/bench/local ;;
        --commit) commit=$2; shift ;;
        --python) python=$2; shift ;;
        --output) output=$(realpath -m "$2"); shift ;;
        *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
    esac
    shift
done
dirty=()
if [[ -z $commit ]]; then
    commit=$(git rev-parse HEAD) || { echo 'no git checkout here: name the commit with --commit' >&2; exit 2; }
    [[ -z $(git status --porcelain) ]] || dirty=(--dirty)
fi

work=$(mktemp -d)
steps=$work/steps
mkdir "$steps"

# step NAME SECONDS COMMAND...: runs it, keeps its output, exit status (124: out of time) and seconds.
step() {
    local name=$1 limit=$2 started=$SECONDS status
    shift 2
    printf '%-18s' "$name"
    timeout --kill-after=10 "$limit" "$@" >"$steps/$name.log" 2>"$steps/$name.err"
    status=$?
    echo "$status $((SECONDS - started))" >"$steps/$name.status"
    echo "$((SECONDS - started)) s$([[ $status == 0 ]] || echo ", exit status $status; the last lines:")"
    [[ $status == 0 ]] || tail -q -n 8 "$steps/$name.log" "$steps/$name.err"
    return "$status"
}

# The package comes from where it was installed; tests and harness from copies beside it, so that no checkout is imported.
run=$work/run
mkdir "$run"
cp -r bench tests pyproject.toml "$run"
export PYTHONPATH=$work/site HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
step install 60 "$python" -m pip --disable-pip-version-check install --quiet --no-index --no-deps --no-build-isolation \
    --no-compile --target "$work/site" "$root" || exit 1
cd "$run" || exit

micro=(bench/micro --benchmark-json "$steps/micro.json" --benchmark-columns=median)
case $mode in
    full)
        step tests 190 "$python" -m bench.gate "$steps"
        step ceilings 25 "$python" -m bench.ceilings
        step micro 100 "$python" -m pytest -q "${micro[@]}" --cases full
        step bert-base-128 50 "$python" -m bench.endtoend --lengths 128 --rows 4096 --stock-batches 128 512 \
            --under-way 1 --waves 65536 262144
        step bert-base-sst2 60 "$python" -m bench.endtoend --rows 32768 --stock-batches 32 64 128 256 512 \
            --exits skewed --under-way 1 --layers stock --attention kernel short
        step bert-large-sst2 60 "$python" -m bench.endtoend --model bert-large --rows 8192 --rounds 3 \
            --stock-batches 64 256 --exits skewed
        ;;
    quick)
        step tests 50 "$python" -m bench.gate "$steps" --quick
        step ceilings 15 "$python" -m bench.ceilings
        step micro 25 "$python" -m pytest -q "${micro[@]}" --cases small --micro-rounds 10
        step bert-base-sst2 30 "$python" -m bench.endtoend --rows 8192 --rounds 3 --stock-batches 64 256 --exits skewed
        ;;
    rehearsal)
        tiny=(--model bert-tiny --rows 24 --rounds 1 --stock-batches 4 8 --device cpu)
        step tests 60 "$python" -m bench.gate "$steps"
        step ceilings 60 "$python" -m bench.ceilings --device cpu
        step micro 120 "$python" -m pytest -q "${micro[@]}" --cases small --micro-rounds 1 --micro-device cpu
        step bert-base-128 120 "$python" -m bench.endtoend "${tiny[@]}" --lengths 128 --under-way 1 --waves 512 1024
        step bert-base-sst2 120 "$python" -m bench.endtoend "${tiny[@]}" --exits skewed --under-way 1 --layers stock \
            --attention kernel short
        step bert-large-sst2 120 "$python" -m bench.endtoend "${tiny[@]}" --exits skewed
        ;;
esac

"$python" -m bench.record write "$steps" --commit "$commit" "${dirty[@]}" --mode "$mode" --output "$output"
status=$?
[[ $status == 0 ]] && rm -rf "$work" || echo "logs: $steps" >&2
exit "$status"
