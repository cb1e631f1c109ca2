"""Options that several commands have, with their help."""

from typing import Annotated

import typer

TextColumn = Annotated[str, typer.Option(help="Column of the texts.")]
TextPairColumn = Annotated[str | None, typer.Option(help="Column of the second texts, for pairs.")]
MaxLength = Annotated[
    int | None, typer.Option(help="Tokens at which a text is cut; default: what model and tokenizer allow.")
]
TokenBudget = Annotated[
    int | None, typer.Option(help="The most tokens computed at once, and of a text; default: by device.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
