"""What `pabee-fast report` takes. Knows no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pabee_fast.arguments import require_model
from pabee_fast.errors import InputError
from pabee_fast.extras import require
from pabee_fast.options import MODEL, READ, TABLES, WRITTEN, Argument, Option, RunOptions, TextOptions, ThreadOptions


@dataclass(frozen=True, kw_only=True)
class ReportSettings(TextOptions, RunOptions, ThreadOptions):
    """What `pabee-fast report` was asked for."""

    tables: Annotated[list[str], Argument("TABLE...", f"Labelled texts, a section each: {TABLES}.")]
    model: Annotated[
        list[str], Option(MODEL, "Model directory with heads; give it again for other seeds of the same recipe.")
    ]
    output: Annotated[Path, Option(WRITTEN, "HTML file to write.")]
    truncated: Annotated[
        list[str], Option(MODEL, "A shallower model, fine-tuned at its depth; may be given again.")
    ] = field(default_factory=list)
    label_column: Annotated[str, Option(READ, "Column of the labels.")] = "label"
    trace: Annotated[
        list[Path],
        Option(
            READ,
            "A trace of a table's texts by a model, as pabee-fast trace writes it, which is not run then, nor timed; "
            "may be given again.",
        ),
    ] = field(default_factory=list)
    metric: Annotated[
        str | None,
        Option(
            WRITTEN,
            "The main one: accuracy, F1 (of two classes; of more macro-F1, of label sets micro-F1), Matthews, Pearson "
            "or Spearman; default: accuracy or Pearson.",
        ),
    ] = None
    tolerance: Annotated[
        float | None, Option(WRITTEN, "Regression: answers this close to their label count as right.")
    ] = None
    name: Annotated[str | None, Option(WRITTEN, "What the report calls the model; default: its directory.")] = None
    overwrite: Annotated[bool, Option(WRITTEN, "Replace an output that exists.")] = False

    def check(self) -> None:
        """Raise InputError for an output that cannot be written, and if a package is missing say so."""
        from pabee_fast.tables.durable import check_writable

        super().check()
        output = self.output
        if output.suffix not in (".html", ".htm"):
            raise InputError(f"{output}: a report is one HTML file; name it .html")
        if output.exists() and not self.overwrite:
            raise InputError(f"{output} exists: name another file, or give --overwrite")
        if not output.absolute().parent.is_dir():
            raise InputError(f"{output} cannot be written: there is no directory {output.absolute().parent}")
        check_writable(output)
        for model in (*self.model, *self.truncated):
            require_model(model)
        self.check_tables(*self.tables)
        for module in ("scipy.stats", "sklearn.metrics", "matplotlib"):
            require(module)
