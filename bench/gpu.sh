#!/usr/bin/env bash
# Everything that needs a GPU, in under eight minutes, the most wanted first. A short table comes last, one record in
# bench/results/<gpu>/<commit>.json; a second run of a commit has a number behind it.
#
#   bench/gpu.sh                 the whole
#   bench/gpu.sh --quick         under two minutes: few tests, one model, the drop-in
#   bench/gpu.sh --tune          attention of short rows and products with GELU alone; `python -m bench.tune write` then
#                                makes the table that the runtime reads from the records in bench/results
#   bench/gpu.sh --rehearse      all steps at tiny sizes on a CPU; the record goes to bench/local, which git ignores
#   bench/gpu.sh --skip STEP     without this step; once for each. Without tests-first the tables of kernels stay as they are
#   bench/gpu.sh --seconds N     all in all (475); a step that comes to an end of it is cut short, the rest is left out
#   bench/gpu.sh --steps FOLDER  keep the steps' logs there, not in a temporary folder
#   bench/gpu.sh --commit HASH   where the checkout has no .git; --python NAME, --output FOLDER
#
# Needed: torch, triton, transformers, pytest, pytest-benchmark, pytest-xdist. Nothing of the machine is changed: it runs
# on a copy of the checkout. A step that hangs, fails or is out of time leaves the figures it had, and the record is
# written whatever happens, also when this script is told to stop; one of the logs alone by `python -m bench.record write
# FOLDER --commit HASH`. The exit status is 1 where a GPU test failed or not all of them ran.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
root=$PWD

mode=full python=python3 commit='' output='' total='' steps='' skipped=' '
while (($#)); do
    case $1 in
        --quick) mode=quick ;;
        --tune) mode=tune ;;
        --rehearse) mode=rehearsal ;;
        --seconds) total=$2; shift ;;
        --skip) skipped+="$2 "; shift ;;
        --steps) steps=$(realpath -m "$2"); shift ;;
        --commit) commit=$2; shift ;;
        --python) [[ $2 == */* ]] && python=$(realpath -ms "$2") || python=$2; shift ;;
        --output) output=$(realpath -m "$2"); shift ;;
        *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
    esac
    shift
done
"$python" -c '
import importlib.util, sys
lacking = ", ".join(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None)
sys.exit(f"{sys.executable} lacks {lacking}: name a Python that has it with --python" if lacking else 0)
' torch triton transformers pytest pytest_benchmark xdist || exit 2
dirty=()
if [[ -z $commit ]]; then
    commit=$(git rev-parse HEAD) || { echo 'no git checkout here: name the commit with --commit' >&2; exit 2; }
    [[ -z $(git status --porcelain) ]] || dirty=(--dirty)
fi
[[ $mode == rehearsal ]] && : "${total:=3600}" "${output:=$root/bench/local}"
: "${total:=475}" "${output:=$root/bench/results}"

work=$(mktemp -d)
: "${steps:=$work/steps}"
mkdir -p "$steps" "$work/run"
rm -f "$steps"/*.{status,log,err,kept}

reserve=0 child='' name=''
# step NAME SECONDS COMMAND...: runs it, keeps its output, exit status (124: out of time) and seconds, and prints its
# table. No step begins or lasts into the last `reserve` seconds.
step() {
    name=$1
    local limit=$2 left=$((total - reserve - SECONDS)) status
    shift 2
    [[ $skipped == *" $name "* ]] && return
    started=$SECONDS
    printf '%-16s' "$name"
    if ((left < 5)); then
        echo '124 0' >"$steps/$name.status"
        echo 'no time left'
        return
    fi
    # In the background, since a shell sees to signals only while it waits.
    timeout --kill-after=5 $((limit < left ? limit : left)) "$@" >"$steps/$name.log" 2>"$steps/$name.err" &
    child=$!
    wait "$child"
    status=$?
    child=''
    echo "$status $((SECONDS - started))" >"$steps/$name.status"
    echo "$((SECONDS - started)) s$([[ $status == 0 ]] || echo ", exit status $status; the last lines:")"
    [[ $status == 0 ]] || tail -n 6 "$steps/$name.err" | cut -c -300
    grep -v '^{' "$steps/$name.log" | tail -n 24 | cut -c -200
}

# Whatever ends it, what the steps have given becomes a record.
finish() {
    local status=$?
    trap '' INT TERM
    if [[ -n $child ]]; then
        kill "$child" 2>/dev/null
        wait "$child"
        echo "143 $((SECONDS - started))" >"$steps/$name.status"
    fi
    "$python" -m bench.record write "$steps" --commit "$commit" "${dirty[@]}" --mode "$mode" --output "$output"
    local written=$?
    [[ $written == 0 && $status == 0 ]] && rm -rf "$work" || echo "logs: $steps" >&2
    exit $((status > written ? status : written))
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cp -r bench tests kernels pabee_fast pyproject.toml "$work/run"
export PYTHONPATH=$work/run HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
cd "$work/run" || exit

# gpu_tests NAME SECONDS OPTIONS...: the GPU tests, whose outcomes are kept one by one.
gpu_tests() {
    local processes=$(($(nproc) - 1))  # several, since Triton compiles on one core
    step "$1" "$2" "$python" -m pytest -q -rfE -m gpu -p no:cacheprovider -p bench.kept --kept "$steps/$1.kept" \
        -n $((processes < 1 ? 1 : processes > 15 ? 15 : processes)) "${@:3}" \
        tests/kernels/test_gpu.py tests/runtime/test_cuda.py
}
# What was just measured chooses the kernels of what follows, as it will once the record is in the repository.
use_what_was_measured() {
    "$python" -m bench.record write "$steps" --commit "$commit" --mode tune --output "$work/tuned" >/dev/null &&
        "$python" -m bench.tune write --results "$work/tuned" >/dev/null &&
        sed -n 's/^    \("sm_[^#]*\).*/tuned: \1/p' pabee_fast/runtime/tuned.py || echo 'the tables stay as they are'
}
bench() { step "$1" "$2" "$python" -m "bench.$3" "${@:4}"; }
micro() {
    step micro "$1" "$python" -m pytest -q bench/micro -p bench.kept --kept "$steps/micro.kept" \
        --benchmark-columns=median "${@:2}"
}

bench machine 60 record machine
case $mode in
    full)
        reserve=85  # for all GPU tests: 1,060 of them took 55 s on 16 cores, and there are 1,140
        gpu_tests tests-first 60 -k 'short or linear_gelu or replays'
        bench ceilings 15 ceilings
        bench attention 60 tune measure --so-far --rounds 3
        use_what_was_measured
        bench bert-base-sst2 80 endtoend --so-far --rows 32768 --rounds 7 --exits skewed \
            --stock-batches 1024 512 --fitted-heads
        bench dropin 40 dropin --so-far --device cuda --rounds 11
        bench whole-job 90 peers --so-far --rows 400000 --rounds 1 --stock-batches 256
        bench bert-large-sst2 50 endtoend --so-far --model bert-large --rows 16384 --rounds 3 --stock-batches 256 \
            --exits skewed
        bench families 40 families --so-far --device cuda --rows 16384 --rounds 3 --stock-batches 1024 \
            --family deberta-v2 modernbert distilbert
        bench host 20 host --rounds 15
        micro 45 --cases full --micro-rounds 10
        bench bert-base-128 35 endtoend --so-far --lengths 128 --rows 4096 --rounds 3 --stock-batches 512 128 \
            --waves 262144
        bench bert-base-512 25 endtoend --so-far --lengths 512 --rows 1024 --rounds 3 --stock-batches 128 32
        reserve=0
        gpu_tests tests 170
        ;;
    quick)
        gpu_tests tests-first 40 -k 'label_set and agreement'
        bench ceilings 15 ceilings
        bench bert-base-sst2 50 endtoend --so-far --rows 8192 --rounds 3 --stock-batches 512 256 --exits skewed
        bench dropin 20 dropin --so-far --device cuda --rounds 5
        ;;
    tune)
        gpu_tests tests-first 90 -k 'short or linear_gelu or replays'
        bench ceilings 15 ceilings
        bench attention 200 tune measure --so-far --rounds 7
        ;;
    rehearsal)
        tiny=(--so-far --model bert-tiny --rows 24 --rounds 1 --stock-batches 4 8 --device cpu)
        gpu_tests tests-first 120 -k 'label_set and agreement'
        bench ceilings 60 ceilings --device cpu
        bench bert-base-sst2 400 endtoend "${tiny[@]}" --exits skewed --attention short kernel --under-way 1 2 \
            --waves 512 --layers stock --fitted-heads
        bench dropin 120 dropin --so-far --device cpu --model bert-tiny --rounds 1 --sizes 1 8
        bench host 60 host --rounds 2
        bench whole-job 240 peers --so-far --device cpu --model bert-tiny --rows 64 --rounds 1 --stock-rows 16 \
            --stock-batches 4 8
        bench attention 120 tune measure --so-far --device cpu --tokens 256 --lengths 16 32 --product-tokens 64 --rounds 1
        bench bert-large-sst2 300 endtoend "${tiny[@]}" --exits skewed
        bench families 120 families --so-far --device cpu --rows 8 --rounds 1 --stock-batches 4 --family distilbert
        bench bert-base-128 300 endtoend "${tiny[@]}" --lengths 128 --waves 512
        bench bert-base-512 300 endtoend "${tiny[@]}" --lengths 512 --rows 4
        micro 300 --cases small --micro-rounds 1 --micro-device cpu
        gpu_tests tests 120
        ;;
esac
exit 0
