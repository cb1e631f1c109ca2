"""What the job benchmarks run on: models with a tokenizer on disk, and tables of made-up texts, all seeded."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import RobertaProcessing, TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import pabee_fast as pf
from bench.cases import SST2_DEV_LENGTHS

WORDS = 30_000
BPE_SIZE = 8_000
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
"""So small that the machinery around the model is the load."""


def make_model(folder: Path, **sizes: int) -> Path:
    """Return a two-class BERT with random weights and heads, and a tokenizer that knows the words of `make_table`."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=WORDS + len(SPECIAL), num_labels=2, **sizes)
    pf.attach_heads(BertForSequenceClassification(config)).eval().save_pretrained(folder)
    words = [*SPECIAL, *(f"w{number}" for number in range(WORDS))]
    core = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    core.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=512, **names).save_pretrained(folder)
    return folder


def make_bpe_model(folder: Path, table: Path, **sizes: int) -> Path:
    """Make a two-class RoBERTa with random weights and heads, and a byte-level BPE tokenizer trained on a table."""
    torch.manual_seed(0)
    core = Tokenizer(BPE(unk_token="<unk>"))
    core.pre_tokenizer = ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    with table.open(encoding="utf-8") as lines:
        core.train_from_iterator(
            (line.partition(",")[2] for line in islice(lines, 20_000)),
            BpeTrainer(vocab_size=BPE_SIZE, special_tokens=special, show_progress=False),
        )
    core.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    config = RobertaConfig(vocab_size=BPE_SIZE, num_labels=2, max_position_embeddings=514, pad_token_id=1, **sizes)
    pf.attach_heads(RobertaForSequenceClassification(config)).eval().save_pretrained(folder)
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=512, **names).save_pretrained(folder)
    return folder


def make_table(path: Path, rows: int, lengths: Sequence[int] | None = None) -> Path:
    """Return a csv table with the columns id and text; rows of sst2 dev's lengths in tokens, or at random of those
    given."""
    rng = np.random.default_rng(0)
    counts = np.array(list(SST2_DEV_LENGTHS.values()))
    shares = counts / counts.sum() if lengths is None else None
    sizes = rng.choice(np.array(lengths or list(SST2_DEV_LENGTHS)), size=rows, p=shares) - 2  # less [CLS] and [SEP]
    with path.open("w", encoding="utf-8") as file:
        file.write("id,text\n")
        for row, size in enumerate(sizes):
            words = " ".join(f"w{number}" for number in rng.integers(0, WORDS, size))
            file.write(f"{row},{words}\n")
    return path
