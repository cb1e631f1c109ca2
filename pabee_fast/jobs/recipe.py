"""What workers are made from: one recipe for each, which every process can be given."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from pabee_fast.arguments import require_single_texts
from pabee_fast.calibration.scorer import open_scorer
from pabee_fast.errors import InputError
from pabee_fast.jobs.worker import About, Worker
from pabee_fast.policies import Policy
from pabee_fast.runtime.device import choose_device
from pabee_fast.scoring.load import Setting

_PRIMITIVES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
"""oneDNN, which multiplies on CPUs, keeps a primitive for every number of tokens it has met: 1,024 by default, some
60 KB each. A wave's count of tokens hardly comes again, so only its own layers find theirs, and 64 are enough. It reads
this at its first product: what is set already, or a product before, wins."""

MOST_TOKENIZERS = 8
"""Processes that tokenize for a GPU, unless it is said otherwise."""


@dataclass(frozen=True)
class Recipe:
    """What a worker is made from, in whatever process: the arguments of `open_scorer`, `Setting.choose` and
    `Worker`. Without a policy it is the one stored with the model, see `choose_policy`.

    `threads` are the CPU threads that the model computes with; None: torch's own choice. `tokenizers` as `Scorer` takes
    them; None: none on a CPU, whose cores the model has, and beside a GPU by cores, see `device_recipes`.
    """

    model: str
    policy: Policy | str | None
    device: str = "auto"
    dtype: str = "auto"
    max_length: int | None = None
    token_budget: int | None = None
    window: int | None = None
    threads: int | None = None
    tokenizers: int | None = None
    all_scores: bool = False
    audit: float = 0.0
    texts: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.audit <= 1:
            raise InputError(f"audit={self.audit}: give a share of the rows, from 0 to 1")
        require_single_texts(self.stride, self.texts)

    def worker(self) -> tuple[Worker, About]:
        """Load the model; raises what `open_scorer` raises."""
        os.environ.setdefault(*_PRIMITIVES)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        setting = Setting.choose(self.device, self.dtype)
        worker = self.worker_for(setting)
        return worker, worker.about(setting)

    def worker_for(self, setting: Setting) -> Worker:
        """Load the model where it is to run."""
        scorer = open_scorer(self.model, self.policy, setting, texts=self.texts, **self.scorer_options)
        return Worker(scorer, all_scores=self.all_scores, audit=self.audit)

    @property
    def scorer_options(self) -> dict[str, Any]:
        """What a scorer is told beside its model and policy."""
        return {
            "max_length": self.max_length,
            "token_budget": self.token_budget,
            "window": self.window,
            "tokenizers": self.tokenizers or 0,
            "stride": self.stride,
        }


def device_recipes(recipe: Recipe, devices: str) -> list[Recipe]:
    """Return a recipe for each device of a list as the command line takes it.

    Args:
        recipe: of one worker.
        devices: `all` (every CUDA device; without one, the CPU), or names between commas: `cuda:0,cuda:2`, `cpu,cpu`.
            Several CPU workers share its cores.

    Raises:
        InputError: a name that is no device.
    """
    if devices == "all":
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    else:
        names = ["cuda" if name == "auto" else name for name in map(str.strip, devices.split(","))]
    cpus = names.count("cpu")
    threads = recipe.threads or (max(1, (os.cpu_count() or 1) // cpus) if cpus > 1 else None)
    chosen = []
    for name in names:
        if choose_device(name).type == "cpu":  # before any process is started
            chosen.append(replace(recipe, device=name, threads=threads))
        else:
            chosen.append(replace(recipe, device=name, tokenizers=_tokenizers(recipe, len(names))))
    return chosen


def _tokenizers(recipe: Recipe, devices: int) -> int:
    """Return how many processes tokenize for each of so many GPUs: the cores, less two for what launches and what
    reads."""
    if recipe.tokenizers is not None:
        return recipe.tokenizers
    return max(1, min(MOST_TOKENIZERS, (os.cpu_count() or 1) // devices - 2))
