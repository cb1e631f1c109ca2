"""Options that several commands have, with their help."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pabee_fast.tables.read import Reading

TABLES = "csv, tsv, jsonl, parquet, arrow; a directory or glob of them, or a dataset saved by Hugging Face"
"""What a command takes that reads its tables whole."""

TextColumn = Annotated[str, typer.Option(help="Column of the texts.")]
TextPairColumn = Annotated[str | None, typer.Option(help="Column of the second texts, for pairs.")]
Delimiter = Annotated[
    str | None,
    typer.Option(help="What stands between fields, ';' say; default: a comma, of tsv a tab. For csv and tsv."),
]
Quoting = Annotated[
    str,
    typer.Option(
        help="minimal: a field in double quotes may hold delimiters and lines, as spreadsheets write it. none: quotes "
        "are characters, as in GLUE's tsv. auto: minimal; but in tsv, quotes that do not close a cell are characters, "
        "lines that look like rows are rows, and both are told, as is a cell of several lines. For csv and tsv."
    ),
]
Encoding = Annotated[str, typer.Option(help="utf-8, utf-16, latin-1, cp1252 and so on. For csv and tsv.")]
MaxLength = Annotated[
    int | None, typer.Option(help="Tokens at which a text is cut; default: what model and tokenizer allow.")
]
TokenBudget = Annotated[
    int | None, typer.Option(help="The most tokens computed at once, and of a text; default: by device.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
OverwriteModel = Annotated[bool, typer.Option("--overwrite", help="Write into a directory that has files.")]
RememberRows = Annotated[
    bool,
    typer.Option(
        help="Keep hashes of at most 1,024 rows in the model's config, so that tune can tell whether it is given rows "
        "that the model knows. Whoever has a text can tell by them whether it was among the rows."
    ),
]


def text_columns(first: str, second: str | None) -> tuple[str, ...]:
    """The columns that hold a row: one, or two of pairs."""
    return (first, second) if second else (first,)


def reading(delimiter: str | None, quoting: str, encoding: str) -> "Reading":
    """How csv and tsv are read."""
    from pabee_fast.tables.read import Reading

    return Reading(delimiter, quoting, encoding)
