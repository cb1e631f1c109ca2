"""What `pabee-fast tune` takes. Knows no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pabee_fast.arguments import require_model, require_one_of, require_seed, require_share, require_whole
from pabee_fast.errors import InputError
from pabee_fast.extras import require
from pabee_fast.options import (
    GUARANTEED,
    MODEL,
    READ,
    RUN,
    TABLES,
    WRITTEN,
    Argument,
    Option,
    RunOptions,
    TextOptions,
    ThreadOptions,
)

ORDER_SHARE = 0.25
"""Of the calibration rows, those that choose what is tested, where nothing else is asked for."""
LIST_RISKS = ("overlap", "ndcg")
"""What can be bounded of lists of candidates; `reranking.guarantee.ListRisk` says what each means."""
TUNING = "tuning"
"""Where `tune` puts frontier.json and the plot by default: a folder in the model's directory."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings(TextOptions, RunOptions, ThreadOptions):
    """What `pabee-fast tune` was asked for."""

    table: Annotated[str | None, Argument("TABLE", f"Calibration texts, without labels: {TABLES}.")] = None
    model: Annotated[str, Option(MODEL, "Model directory with heads; the chosen policy is stored in its config.")]
    label_column: Annotated[
        str | None, Option(READ, "Column of the labels, for --risk accuracy-loss; of the relevance, for ndcg.")
    ] = None
    trace: Annotated[
        Path | None, Option(READ, "A trace of the calibration texts, as pabee-fast trace writes it, in place of TABLE.")
    ] = None
    epsilon: Annotated[float, Option(GUARANTEED, "The most that the risk may be, as a share of the rows.")] = 0.01
    delta: Annotated[float, Option(GUARANTEED, "The most that the probability of a broken promise may be.")] = 0.05
    risk: Annotated[
        str | None,
        Option(
            GUARANTEED,
            "What is bounded: disagreement (the answer is not full depth's), accuracy-loss (full depth is right and "
            "the answer is not; needs labels), or distance (regression: further than --tolerance from full depth). "
            "Default: disagreement, or distance for regression. With --top-k: overlap (the share of full depth's best "
            "that is missing, the default), or ndcg (what is lost of it; needs relevance).",
        ),
    ] = None
    tolerance: Annotated[float | None, Option(GUARANTEED, "Of --risk distance, in units of the output.")] = None
    top_k: Annotated[
        int | None,
        Option(
            GUARANTEED,
            "For `pabee-fast rerank`: rows are a query and a candidate, those of a query neighbours, and so many of "
            "them are wanted. Chosen is when candidates are dropped; the mean risk of a list is bounded.",
        ),
    ] = None
    label: Annotated[
        str | None,
        Option(GUARANTEED, "With --top-k, of a model with several labels: the one that candidates are ranked by."),
    ] = None
    order_share: Annotated[
        float | None,
        Option(GUARANTEED, "Share of the rows, drawn by --seed, that choose what is tested alone; default: 0.25."),
    ] = None
    order: Annotated[str | None, Option(GUARANTEED, "Other texts, that choose what is tested, instead.")] = None
    seed: Annotated[int, Option(GUARANTEED, "Of the split by --order-share.")] = 0
    allow_learned: Annotated[
        bool,
        Option(
            GUARANTEED,
            "Take rows although fit or train has learned from most: where texts recur as often in what is scored.",
        ),
    ] = False
    dtype: Annotated[str, Option(RUN, "auto, float32, bfloat16 or float16; the promise holds in it.")] = "auto"
    output: Annotated[
        Path | None,
        Option(WRITTEN, "Directory for frontier.json and the plot; default: tuning, in the model's."),
    ] = None
    plot: Annotated[str, Option(WRITTEN, "svg or png.")] = "svg"
    store: Annotated[bool, Option(WRITTEN, "Store the chosen policy and its guarantee in the model's config.")] = True

    @property
    def share(self) -> float | None:
        """Of the rows, those that choose what is tested; None: other rows do."""
        if self.order is not None:
            return None
        return ORDER_SHARE if self.order_share is None else self.order_share

    @property
    def folder(self) -> Path:
        """Where frontier.json and the plot go."""
        return self.output if self.output is not None else Path(self.model) / TUNING

    def check(self) -> None:
        """Raise InputError for what can be seen before a model is loaded, and if a package is missing say so."""
        from pabee_fast.tables.durable import check_writable

        super().check()
        self._check_rows()
        require_one_of("plot", self.plot, ("svg", "png"))
        self._check_lists()
        labelled = "accuracy-loss" if self.top_k is None else "ndcg"
        if self.risk == labelled and self.label_column is None and self.trace is None:
            raise InputError(f"risk '{labelled}' needs labels: name their column by --label-column")
        if self.label_column is not None and self.risk != labelled:
            raise InputError(
                f"label column {self.label_column!r}: only the risk {labelled} looks at labels; give --risk "
                f"{labelled}, or leave the option out"
            )
        for name in ("epsilon", "delta"):
            require_share(name, getattr(self, name))
        if self.order_share is not None:
            require_share("order share", self.order_share)
        require_seed(self.seed)
        if self.store:
            check_writable(config_of(self.model))
        check_writable(self.folder)
        self.check_tables(*(table for table in (self.table, self.order) if table is not None))
        require("scipy.stats")
        require("matplotlib")

    def _check_lists(self) -> None:
        """Raise InputError where what is of lists is missing or unwanted."""
        if self.top_k is None:
            if self.label is not None:
                raise InputError(f"label {self.label!r}: it says by what candidates are ranked; give --top-k too")
            return
        require_whole("top_k", self.top_k, at_least=1)
        if self.text_pair_column is None:
            raise InputError(
                "--top-k is of candidates: name the queries' column by --text-column, and the candidates' by "
                "--text-pair-column"
            )
        for name in ("trace", "order", "tolerance"):
            if getattr(self, name) is not None:
                raise InputError(f"--{name}: with --top-k a table's own lists choose and test; leave it out")
        require_one_of("risk", self.risk or LIST_RISKS[0], LIST_RISKS)

    def _check_rows(self) -> None:
        """Raise InputError where what gives the rows is missing, or named twice."""
        if (self.table is None) == (self.trace is None):
            raise InputError("give either a table of calibration texts, or --trace with a trace of them")
        tables = (self.order, self.table)
        if None not in tables and len({Path(str(table)).resolve() for table in tables}) == 1:
            raise InputError(
                f"{self.table} orders and tests: rows that choose what is tested cannot test it; name another "
                "table by --order, or leave it out and let --order-share split this one"
            )
        if self.order is not None and self.order_share is not None:
            raise InputError(
                f"order share {self.order_share}: the rows of {self.order} choose what is tested; leave one of "
                "both options out"
            )
        if self.trace is not None and self.label_column is not None:
            raise InputError(f"label column {self.label_column!r}: a trace holds its labels; leave the option out")


@dataclass(frozen=True, kw_only=True)
class TraceSettings(TextOptions, RunOptions, ThreadOptions):
    """What `pabee-fast trace` was asked for."""

    table: Annotated[str, Argument("TABLE", f"Texts: {TABLES}.")]
    model: Annotated[str, Option(MODEL, "Model directory with heads.")]
    label_column: Annotated[str | None, Option(READ, "Column of the labels, kept with the trace.")] = None
    output: Annotated[
        Path, Option(WRITTEN, "The trace, a .safetensors file: rows x layers x outputs x 4 bytes, and no texts.")
    ]
    overwrite: Annotated[bool, Option(WRITTEN, "Replace an output that exists.")] = False

    def check(self) -> None:
        """Raise InputError for an output that cannot be written, or a table that cannot be read."""
        from pabee_fast.tables.durable import check_writable

        super().check()
        if self.output.suffix != ".safetensors":
            raise InputError(f"{self.output}: a trace is one safetensors file; name it .safetensors")
        if self.output.exists() and not self.overwrite:
            raise InputError(f"{self.output} exists: name another file, or give --overwrite")
        if not self.output.absolute().parent.is_dir():
            raise InputError(f"{self.output} cannot be written: there is no directory {self.output.absolute().parent}")
        check_writable(self.output)
        require_model(self.model)
        self.check_tables(self.table)


def config_of(path: str | Path) -> Path:
    """Return the config.json of a model directory, in which a guarantee is stored.

    Raises:
        InputError: there is none.
    """
    config = Path(path) / "config.json"
    if not config.is_file():
        raise InputError(f"{path} is no model directory on this machine, and a guarantee is stored in one: give one")
    return config
