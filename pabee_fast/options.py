"""What a command may be told, written once: a dataclass whose fields carry their help, and the options commands share.

Knows names, help and values. Knows neither the terminal, on which `cli` shows them, nor torch, so that what cannot be
used is refused at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pabee_fast.arguments import require_device, require_dtype, require_single_texts, require_whole

if TYPE_CHECKING:
    from pabee_fast.tables.read import Reading

MODEL = "The model"
READ = "What is read"
WRITTEN = "What is written"
LEARNED = "What is learned"
GUARANTEED = "What is guaranteed"
RUN = "How it runs"
CSV = "How csv and tsv are read"
PANELS = (MODEL, READ, WRITTEN, LEARNED, GUARANTEED, RUN, CSV)
"""Of a command's help, in its order."""

TABLES = "csv, tsv, jsonl, parquet, arrow; a directory or glob of them, or a dataset saved by Hugging Face"
"""What a command takes that reads its tables whole."""


@dataclass(frozen=True)
class Option:
    """What annotates a field that is an option: `text_column` is --text-column, a bool that is False is a flag.

    Args:
        panel: of the help, one of PANELS.
        help: what it means.
    """

    panel: str
    help: str


@dataclass(frozen=True)
class Argument:
    """What annotates a field that is given by its place.

    Args:
        metavar: what the help calls it.
        help: what it means.
    """

    metavar: str
    help: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one command was asked for: every field is annotated with an Option or an Argument.

    Raises:
        InputError: a value that cannot be used, as far as can be told without torch.
    """

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise InputError for what cannot be used; a group of options checks its own, and those of its bases first."""


@dataclass(frozen=True, kw_only=True)
class TextOptions(Options):
    """Which columns hold the texts, and how csv and tsv are read."""

    text_column: Annotated[str, Option(READ, "Column of the texts.")] = "text"
    text_pair_column: Annotated[str | None, Option(READ, "Column of the second texts, for pairs.")] = None
    delimiter: Annotated[
        str | None,
        Option(CSV, "What stands between fields, ';' say; default: a comma, of tsv a tab. For csv and tsv."),
    ] = None
    encoding: Annotated[str, Option(CSV, "utf-8, utf-16, latin-1, cp1252 and so on. For csv and tsv.")] = "utf-8"
    quoting: Annotated[
        str,
        Option(
            CSV,
            "minimal: a field in double quotes may hold delimiters and lines, as spreadsheets write it. none: quotes "
            "are characters, as in GLUE's tsv. auto: minimal; but in tsv, quotes that do not close a cell are "
            "characters, lines that look like rows are rows, and both are told, as is a cell of several lines. For csv "
            "and tsv.",
        ),
    ] = "auto"

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that hold a row: one, or two of pairs."""
        return (self.text_column, self.text_pair_column) if self.text_pair_column else (self.text_column,)

    @property
    def reading(self) -> "Reading":
        """How csv and tsv are read."""
        from pabee_fast.tables.read import Reading

        return Reading(self.delimiter, self.quoting, self.encoding)

    def check(self) -> None:
        super().check()
        _ = self.reading

    def check_tables(self, *named: str) -> None:
        """Raise InputError where a table is not there, or no such file can be read; at a URL, files are only listed."""
        from pabee_fast.tables.files import find_files
        from pabee_fast.tables.open import check_file

        for table in named:
            for path in find_files([table]):
                if isinstance(path, Path):
                    check_file(path, self.reading)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """What computes, and how precisely."""

    device: Annotated[str, Option(RUN, "auto, cpu, cuda or cuda:1.")] = "auto"
    dtype: Annotated[str, Option(RUN, "auto, float32, bfloat16 or float16.")] = "auto"

    def check(self) -> None:
        super().check()
        require_device(self.device)
        require_dtype(self.dtype)


@dataclass(frozen=True, kw_only=True)
class ThreadOptions(Options):
    """How much of the CPU is used."""

    threads: Annotated[
        int | None, Option(RUN, "CPU threads that compute; default: what OMP_NUM_THREADS says, or one for each core.")
    ] = None

    def check(self) -> None:
        super().check()
        if self.threads is not None:
            require_whole("threads", self.threads, at_least=1)


@dataclass(frozen=True, kw_only=True)
class RunOptions(DeviceOptions):
    """How texts go through a model."""

    max_length: Annotated[
        int | None,
        Option(
            RUN, "Tokens at which a text is cut; default: what train, fit or tune stored, else what the model allows."
        ),
    ] = None
    stride: Annotated[
        int | None,
        Option(
            RUN,
            "Read a text that is longer whole, in stretches of so many tokens that overlap by this number: its logits "
            "are the mean of theirs, its exit layer their largest. Not for pairs. Default: it is cut.",
        ),
    ] = None
    token_budget: Annotated[
        int | None, Option(RUN, "The most tokens computed at once, and of a text; default: by device.")
    ] = None

    def check(self) -> None:
        super().check()
        for name in ("max_length", "token_budget"):
            if (value := getattr(self, name)) is not None:
                require_whole(name, value, at_least=1)
        if self.stride is not None:
            require_whole("stride", self.stride, at_least=0)
            require_single_texts(self.stride, len(self.text_columns) if isinstance(self, TextOptions) else None)
