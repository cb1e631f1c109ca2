"""transformers' own pipeline, with one line more: `python examples/pipeline_swap.py [MODEL_DIRECTORY]`.

The directory holds a classifier with heads (`pabee-fast fit` or `pabee-fast train` make one); without it the sample
model that lies beside this script is taken.
"""

import csv
from pathlib import Path
from typing import Annotated

import typer
from transformers import AutoTokenizer, pipeline

import pabee_fast as pf

HERE = Path(__file__).parent


def main(directory: Annotated[str, typer.Argument()] = str(HERE / "sample-model")) -> None:
    with (HERE / "sample.csv").open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:64]
    model, tokenizer = pf.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=32)
    before = classify(texts, truncation=True)

    pf.accelerate(model, pf.Patience(3))  # the line; the pipeline holds the same model

    after = classify(texts, truncation=True)
    same = sum(a["label"] == b["label"] for a, b in zip(before, after, strict=True))
    print(f"{same} of {len(texts)} answers are those of full depth; the first: {after[0]}")


if __name__ == "__main__":
    typer.run(main)
