"""`pabee-fast rerank`."""

from dataclasses import dataclass
from typing import Annotated, Any

from pabee_fast.arguments import require_whole
from pabee_fast.cli.loading import loading
from pabee_fast.cli.options import takes
from pabee_fast.cli.score import TableOptions, recipe_options, run_job
from pabee_fast.cli.watch import Watch
from pabee_fast.errors import InputError
from pabee_fast.options import MODEL, READ, TABLES, WRITTEN, Argument, Option


@dataclass(frozen=True, kw_only=True)
class RerankOptions(TableOptions):
    """What `pabee-fast rerank` was asked for."""

    inputs: Annotated[
        list[str],
        Argument("INPUT...", f"Tables of pairs, the rows of a query neighbours: {TABLES}; compressed too."),
    ]
    text_column: Annotated[str, Option(READ, "Column of the queries; neighbouring rows of one are a list.")] = "query"
    text_pair_column: Annotated[str | None, Option(READ, "Column of the candidates.")] = "document"
    policy: Annotated[
        str | None,
        Option(
            MODEL,
            "When a candidate leaves: shortlist:10,margins=inf/2/1.5/1/0.5 (one for each layer but the last), or as "
            "for score. Default: what `pabee-fast tune --top-k` stored with the model for as many, or full-depth.",
        ),
    ] = None
    top_k: Annotated[int, Option(MODEL, "How many candidates of a query are wanted; 0: all, at full depth.")] = 10
    label: Annotated[
        str | None, Option(MODEL, "Of a model with several labels: the one by whose probability candidates are ranked.")
    ] = None
    output: Annotated[str, Option(WRITTEN, "Table to write, as its suffix says (.csv.gz too); DIRECTORY/ for parts.")]

    def check(self) -> None:
        super().check()
        require_whole("top_k", self.top_k, at_least=0)
        if not self.text_pair_column:
            raise InputError("text pair column is empty: name the column of the candidates by --text-pair-column")
        if self.is_stream:
            raise InputError("-: rerank reads and writes tables, of which it can go on; give files")


@takes(RerankOptions)
def rerank_command(options: RerankOptions) -> None:
    """Rank the candidates of many queries: the table's columns, and score, rank, exit_layer and error for every row.

    The best of each query have a rank; candidates that can hardly be among them are dropped on the way, and their score
    is that of the layer they left at. The job is done in parts of whole lists and goes on as score does.
    """
    from pabee_fast.jobs.job import Columns

    columns = Columns(options.text_columns, options.prefix, options.reading, are_lists=True)
    run_job(options, columns, lambda watch: _executor(options, watch))


def _executor(options: RerankOptions, watch: Watch) -> Any:
    """Return what ranks; here torch and transformers are imported, and the model is loaded."""
    with loading():
        import transformers

        from pabee_fast.jobs.executors import open_executor
        from pabee_fast.jobs.ranking import RankingRecipe

    transformers.logging.disable_progress_bar()
    recipe = RankingRecipe(top_k=options.top_k or None, label=options.label, **recipe_options(options))
    return open_executor(recipe, options.devices, options.engine, options.workers, watch.on_rows)
