"""A sentence-transformers CrossEncoder that leaves early: `python examples/rerank.py MODEL_DIRECTORY [--threshold T]`.

The directory holds a cross-encoder of one output with heads (`pabee-fast fit` adds them to a reranker). What early exit
costs a ranking is printed: the rank correlation with full depth, and how many of its ten best are found again.
"""

import typer
from scipy.stats import spearmanr
from sentence_transformers import CrossEncoder

import pabee_fast as pf

QUERY = "a good film"
WORDS = ["the film was", "very", "not", "good", "bad", "long", "and", "what", "this is"]
DOCUMENTS = [f"{a} {b} {c}" for a in WORDS[:4] for b in WORDS[2:7] for c in WORDS[5:]]


def main(directory: str, threshold: float = 0.05) -> None:
    reranker = CrossEncoder(directory)
    pairs = [(QUERY, document) for document in DOCUMENTS]
    full = reranker.predict(pairs)

    pf.accelerate(reranker, pf.Patience(2, threshold=threshold))  # the line
    early = reranker.predict(pairs)

    best = set(full.argsort()[-10:].tolist())
    found = len(best & set(early.argsort()[-10:].tolist()))
    print(f"{len(pairs)} pairs: rank correlation with full depth {spearmanr(full, early).statistic:.3f}")
    print(f"of the ten best of full depth, {found} are among the ten best")
    for place in reranker.rank(QUERY, DOCUMENTS, top_k=3):
        print(f"{place['score']:.4f}  {DOCUMENTS[place['corpus_id']]}")


if __name__ == "__main__":
    typer.run(main)
