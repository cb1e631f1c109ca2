"""What several rooms' tests share: tiny models, and the recorded answers where they lie beside the checkout."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

import pabee_fast as pf

# No test is timed: on a machine with other work an example may take any time.
with contextlib.suppress(ImportError):  # a GPU machine need not have it
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the files with slow tests first, or at the end one process would wait for another's."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
    # Large enough that answers change from layer to layer, so that rows leave at different ones.
    "initializer_range": 0.25,
}
CONFIGS: dict[str, type[PretrainedConfig]] = {"bert": BertConfig, "albert": AlbertConfig, "roberta": RobertaConfig}
FAMILIES = tuple(CONFIGS)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """One thread a test run: how a product is split between threads changes its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def oracle() -> Path:
    """The published code's recorded answers."""
    folder = SHARED / "oracle"
    if not folder.is_dir():
        pytest.skip("no recorded answers of the published code beside this checkout (../shared/oracle)")
    return folder


def tiny_stock(family: str, *, num_labels: int = 3, seed: int = 0, **options: object) -> PreTrainedModel:
    """A stock model with random weights whose biases are not zero, in evaluation mode."""
    special = {"embedding_size": 16} if family == "albert" else {}
    pad = {"pad_token_id": 1} if family == "roberta" else {"pad_token_id": 0}
    torch.manual_seed(seed)
    config = CONFIGS[family](**{**SIZES, **special, **pad, "num_labels": num_labels, **options})
    model = AutoModelForSequenceClassification.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def tiny_model(
    family: str,
    *,
    head: str = "pabee",
    pooling: str | None = None,
    first_layer: int = 1,
    num_labels: int = 3,
    seed: int = 0,
    **options: object,
) -> PreTrainedModel:
    """The same with heads."""
    stock = tiny_stock(family, num_labels=num_labels, seed=seed, **options)
    return pf.attach_heads(stock, head, pooling=pooling, first_layer=first_layer).eval()


def padded_rows(lengths: list[int], *, family: str = "bert", seed: int = 0) -> dict[str, torch.Tensor]:
    """Random rows of the given lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    pad, longest = (1 if family == "roberta" else 0), max(lengths)
    input_ids = torch.randint(5, SIZES["vocab_size"], (len(lengths), longest), generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.where(mask, input_ids, pad), "attention_mask": mask.long()}


@pytest.fixture(scope="session")
def bare_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """One that adds no special tokens, so that an empty text has none."""
    rules = type(tiny_tokenizer.backend_tokenizer).from_str(tiny_tokenizer.backend_tokenizer.to_str())
    rules.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(tokenizer_object=rules, pad_token="[PAD]")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A fast wordpiece tokenizer of a few words, with BERT's special tokens around texts and pairs."""
    special, marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], [".", ",", "!"]
    plain = ["a", "and", "bad", "film", "good", "is", "long", "the", "this", "was", "what", "very", "not", "it"]
    words = special + plain + marks
    core = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    core.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=SIZES["max_position_embeddings"],
    )


@pytest.fixture
def run_python() -> Callable[[str], str]:
    """Runs a program in a process of its own and returns what it printed; fails with its output if it fails."""

    def run(program: str) -> str:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
