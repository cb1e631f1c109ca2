"""The model's own tokenizer in processes of their own, where nothing faster serves.

Several copies of it do what threads on one do not: keep as many cores busy. Rows go there and tokens come back as Arrow
record batches over pipes. A process knows this file and `texts`, and is up in half a second.
"""

import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from pabee_fast.errors import WorkerDied
from pabee_fast.scoring.texts import OwnTokenizer, Texts, Tokens

TRIES = 3
"""How often rows are given to a process before they are held to be what kills it."""

_ROWS = pa.schema([("first", pa.large_string()), ("second", pa.large_string())])
_LISTS = pa.large_list(pa.int32())
_TOKENS = pa.schema([("ids", _LISTS), ("types", _LISTS), ("begins", pa.bool_()), ("cut", pa.bool_())])
"""Of each stretch: its tokens, whether it begins a row, and whether that row was cut."""
_BEGIN = "import sys; sys.path[:] = {path}; from pabee_fast.scoring.shards import serve; serve()"


class Shards:
    """Processes that tokenize; called as `OwnTokenizer` is, by many threads.

    Args:
        core: the tokenizer, of which each has a copy.
        processes: how many.
        in_stretches: as for `OwnTokenizer`.
    """

    def __init__(self, core: Tokenizer, processes: int, *, in_stretches: bool = False) -> None:
        self.processes = processes
        flags = {"split_special": str(core.encode_special_tokens), "in_stretches": str(in_stretches)}
        self._settings = {"tokenizer": core.to_str(), **flags}
        self._threads = ThreadPoolExecutor(processes, "shard")
        self._idle: queue.SimpleQueue[_Shard] = queue.SimpleQueue()
        self._all = [_Shard(self._settings) for _ in range(processes)]
        for shard in self._all:
            self._idle.put(shard)

    def __call__(self, texts: Texts) -> Tokens:
        """Return the tokens of rows, at least one.

        Raises:
            WorkerDied: a process dies whenever it has them.
        """
        each = -(-len(texts.first) // len(self._all))
        parts = [texts.part(start, each) for start in range(0, len(texts.first), each)]
        found = list(self._threads.map(self._ask, parts))
        return Tokens(*map(np.concatenate, zip(*found, strict=True)))

    def close(self) -> None:
        """End the processes, whatever they are at."""
        for shard in self._all:
            shard.end()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _ask(self, texts: Texts) -> Tokens:
        shard = self._idle.get()
        try:
            for _ in range(TRIES):
                try:
                    return shard.tokens(texts)
                except (OSError, ValueError):  # its pipe has ended, and it with it
                    shard.start_again()
            raise WorkerDied(f"a process that tokenizes died {TRIES} times while it had this row's part")
        finally:
            self._idle.put(shard)


class _Shard:
    """One process, as its owner sees it."""

    _process: Any
    _rows: Any  # what writes to it, once it was asked for something
    _tokens: Any  # what reads from it, once it has answered

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self._ended = False
        self._start()

    def tokens(self, texts: Texts) -> Tokens:
        """Ask for the tokens of rows; raises OSError or ValueError (Arrow's is one) where the process has died."""
        second = [None] * len(texts.first) if texts.second is None else texts.second
        if self._rows is None:  # not before, since it waits until the process is up
            self._rows = pa.ipc.new_stream(self._process.stdin, _ROWS.with_metadata(self._settings))
        self._rows.write_batch(pa.record_batch([texts.first, second], schema=_ROWS))
        self._process.stdin.flush()
        if self._tokens is None:
            self._tokens = pa.ipc.open_stream(self._process.stdout)
        try:
            ids, types, begins, cut = self._tokens.read_next_batch().columns
        except StopIteration:
            raise BrokenPipeError("the stream of tokens has ended") from None
        lengths = np.diff(ids.offsets.to_numpy())
        rows = np.flatnonzero(begins.to_numpy(zero_copy_only=False))
        is_cut = cut.to_numpy(zero_copy_only=False)[rows]
        stretches = np.diff(rows, append=len(lengths))
        return Tokens(ids.values.to_numpy(), types.values.to_numpy(), lengths, is_cut, stretches)

    def start_again(self) -> None:
        """Put a process in the place of one that died."""
        self._kill()
        if self._ended:
            raise InterruptedError("the processes that tokenize were ended")
        self._start()

    def end(self) -> None:
        """End the process; whoever waits for it is told so."""
        self._ended = True
        self._kill()

    def _start(self) -> None:
        # Another session: a Ctrl-C of the terminal is its owner's, whose end it sees by its pipe.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._rows = self._tokens = None

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what it was not sent
                pipe.close()


def serve() -> None:
    """Tokenize what comes on standard input, until it ends; what a process of `Shards` runs."""
    with pa.ipc.open_stream(sys.stdin.buffer) as rows:
        settings = {name.decode(): value.decode() for name, value in rows.schema.metadata.items()}
        core = Tokenizer.from_str(settings["tokenizer"])
        core.encode_special_tokens = settings["split_special"] == "True"
        own = OwnTokenizer(core, in_stretches=settings["in_stretches"] == "True")
        with pa.ipc.new_stream(sys.stdout.buffer, _TOKENS) as answers:
            for batch in rows:
                tokens = own(Texts.of(*(column.to_pylist() for column in batch.columns)))
                offsets = pa.array(np.concatenate([[0], np.cumsum(tokens.lengths)]))
                lists = [pa.LargeListArray.from_arrays(offsets, pa.array(flat)) for flat in (tokens.ids, tokens.types)]
                begins = np.zeros(len(tokens.lengths), dtype=bool)
                begins[np.cumsum(tokens.stretches) - tokens.stretches] = True
                flags = [pa.array(begins), pa.array(np.repeat(tokens.cut, tokens.stretches))]
                answers.write_batch(pa.record_batch([*lists, *flags], schema=_TOKENS))
                sys.stdout.buffer.flush()
