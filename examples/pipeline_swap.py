"""transformers' own pipeline, with one line more: `python examples/pipeline_swap.py [MODEL_DIRECTORY]`.

The directory holds a classifier with heads (`pabee-fast fit` or `pabee-fast train` make one); without it the sample
model that lies beside this script is taken.
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer, pipeline

import pabee_fast as pf

TEXTS = [
    "a warm and funny film with a great cast",
    "the plot makes no sense and the jokes fall flat",
    "i would watch it again tomorrow",
    "two hours that feel like four",
] * 8


def main(directory: str = str(Path(__file__).with_name("sample-model"))) -> None:
    model, tokenizer = pf.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=32)
    before = classify(TEXTS)

    pf.accelerate(model, pf.Patience(3))  # the line; the pipeline holds the same model

    after = classify(TEXTS)
    same = sum(a["label"] == b["label"] for a, b in zip(before, after, strict=True))
    print(f"{same} of {len(TEXTS)} answers are those of full depth; the first: {after[0]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
