"""However the command ends, it says why in a line: stopped as it starts, without standard streams, with nobody to read
what it prints."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.conftest import ROOT, tiny_model
from tests.jobs.conftest import put_rows
from tests.scoring.test_texts import tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals and streams of other kinds")]

QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
COMMAND = [sys.executable, "-m", "pabee_fast"]
FIXED = ["--device", "cpu", "--dtype", "float32", "--policy", "patience:1"]


def shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a shell's line, in which "$@" is the command with its arguments."""
    words = ["sh", "-c", line, "sh", *COMMAND, *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, env=QUIET, capture_output=True, text=True, timeout=600, check=False)


STOPPED = """
import os, signal, sys
from pabee_fast.cli import main

class Finder:
    def find_spec(self, name, *_):
        if name == "{module}":
            try:
                os.kill(os.getpid(), signal.{signal})
            except BaseException:
                pass  # as imports do that can go on without what they try

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
sys.meta_path.insert(0, Finder())
sys.argv = ["pabee-fast", "info"]
main()
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["typer", "torch"])
def test_stopped_while_it_imports_it_ends_at_once_with_a_line(module: str, signal: str) -> None:
    command = [sys.executable, "-c", STOPPED.replace("{module}", module).replace("{signal}", signal)]
    done = subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "pabee-fast: stopping\n")


TWICE = """
import os, signal, sys, time
from pabee_fast import cli

class Slow:
    def __call__(self):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

cli.app = Slow()
cli.main()
"""


def test_a_second_signal_does_not_wait_for_what_the_first_one_began() -> None:
    command = [sys.executable, "-c", TWICE]
    done = subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (130, "pabee-fast: stopping\n")


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["score", "--help"]])
def test_what_nobody_reads_is_a_line_and_the_status_of_a_broken_pipe(words: list[str]) -> None:
    done = shell('{ sleep 0.1; "$@"; echo $? >&2; } | true', *words)
    assert done.stderr == "pabee-fast: standard output was closed before all was written\n141\n"


def test_what_cannot_be_printed_is_a_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no device that is full")
    done = shell('"$@" >/dev/full', "--version")
    assert done.returncode == 2 and done.stderr.startswith("pabee-fast: No space left on device")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("closed", "status", "printed"), [(">&-", 0, 0), ("<&-", 0, 1), ("2>&-", 0, 1)])
def test_a_closed_stream_is_no_reason_to_fail(closed: str, status: int, printed: int) -> None:
    done = shell(f'"$@" {closed}', "--version")
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (status, printed, "")


def test_an_error_that_cannot_be_shown_is_not_written_among_the_results() -> None:
    done = shell('"$@" 2>&-', "score", "absent.csv", "--model", "m", "--output", "o.csv")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    program = (
        "import os; from pabee_fast import cli; cli._open_closed_streams(); "
        "os.write(3, str(os.open('README.md', os.O_RDONLY)).encode())"
    )
    line = f'exec 3>&1; "{sys.executable}" -c "{program}" <&- >&- 2>&-'
    assert int(shell(line).stdout) > 2


@pytest.mark.parametrize(("closed", "says"), [("<&-", "standard input is closed"), (">&-", "output is closed")])
def test_a_pipe_of_which_an_end_is_closed_is_refused(closed: str, says: str, small_model: Path) -> None:
    done = shell(f'"$@" {closed}', "score", "-", "--model", small_model, "--output", "-", *FIXED)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "line", "status", "says"),
    [
        ([], '{"text": "good"}', 141, "standard output was closed"),
        (["--max-errors", "0"], '{"text": 1}', 2, "more than max_errors=0"),
    ],
)
def test_a_pipe_that_fails_while_more_may_come_ends_with_a_line(
    words: list[str], line: str, status: int, says: str, small_model: Path
) -> None:
    command = [*COMMAND, "score", "-", "--model", str(small_model), "--output", "-", *FIXED, *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=QUIET, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as job:
        assert job.stdin is not None and job.stdout is not None and job.stderr is not None
        job.stdin.write('{"text": "good"}\n')
        job.stdin.flush()
        job.stdout.readline()
        if status == 141:
            job.stdout.close()
        job.stdin.write(f"{line}\n")
        job.stdin.flush()
        assert job.wait(timeout=120) == status
        said = job.stderr.read().splitlines()
    assert said[0].startswith("policy") and says in said[1] and len(said) == 2


@pytest.fixture(scope="module")
def bpe_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer nothing faster takes the place of."""
    folder = tmp_path_factory.mktemp("bpe-model")
    core = tokenizer("bpe", "gpt2", limit=64)
    tiny_model("bert", vocab_size=core.get_vocab_size()).save_pretrained(folder)
    names = {"pad_token": "<s>", "unk_token": "<unk>", "model_max_length": 64}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for children")
@pytest.mark.parametrize(
    ("stop", "devices"), [(None, []), (signal.SIGTERM, []), (signal.SIGKILL, ["--devices", "cpu,cpu"])]
)
def test_no_process_that_tokenizes_is_left(stop: signal.Signals | None, devices: list[str], bpe_model: Path) -> None:
    command = [*COMMAND, "score", "-", "--model", str(bpe_model), "--output", "-", *FIXED, "--tokenizers", "2"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *devices], cwd=ROOT, env=QUIET, stdin=pipe, stdout=pipe, stderr=pipe) as job:
        assert job.stdin is not None and job.stdout is not None
        for _ in range(2):
            job.stdin.write(b'{"text": "abc ab"}\n' * 4)
            job.stdin.flush()
            assert [json.loads(job.stdout.readline())["error"] for _ in range(4)] == [None] * 4
        beneath = below(job.pid)
        assert len(beneath) >= 2
        job.stdin.close() if stop is None else job.send_signal(stop)
        assert job.wait(timeout=60) == {None: 0, signal.SIGTERM: 130, signal.SIGKILL: -9}[stop]
        left = [pid for pid in beneath if is_alive(pid, seconds=20)]
    assert left == []


def below(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [*children, *(one for child in children for one in below(child))]


def is_alive(pid: int, seconds: float) -> bool:
    """Whether a process is still there after so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.05)
    return True


def test_workers_end_without_a_word(small_model: Path, tmp_path: Path) -> None:
    source = put_rows(tmp_path / "in.jsonl", 5)
    words = ["score", source, "--model", small_model, "--output", tmp_path / "out.csv", "--devices", "cpu,cpu"]
    done = shell('"$@"', *words, *FIXED[2:])
    assert (done.returncode, done.stderr) == (0, "")
