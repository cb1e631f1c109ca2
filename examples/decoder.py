"""A decoder that classifies, GPT-2 or one of Llama's relatives: `python examples/decoder.py MODEL_DIRECTORY`.

The directory holds a `*ForSequenceClassification` with heads and its tokenizer. A decoder finds the end of a row by its
padding token, so the config must name one: `model.config.pad_token_id = tokenizer.pad_token_id` before it is saved.
"""

import time

import typer
from transformers import AutoTokenizer

import pabee_fast as pf

TEXTS = ["the film was very good", "what a bad film", "not long and not bad", "this is a long and very good film"] * 16


def main(directory: str) -> None:
    model, tokenizer = pf.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    for policy in (pf.FullDepth(), pf.Confidence(0.9), pf.Patience(2)):
        scorer = pf.Scorer(model, tokenizer, policy=policy)
        started = time.perf_counter()
        results = list(scorer.score(TEXTS))
        seconds = time.perf_counter() - started
        print(
            f"{policy}: {len(TEXTS) / seconds:.0f} rows/s on {scorer.engine.device.type}, "
            f"mean exit layer {scorer.tally.mean_exit_layer:.2f} of {model.config.num_hidden_layers}; "
            f"the first: {results[0].prediction}"
        )


if __name__ == "__main__":
    typer.run(main)
