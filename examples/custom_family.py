"""Early exit for a model of your own: `python examples/custom_family.py`.

Any transformers model can be taught in one small class, whose methods say what the runtime cannot guess: how packed
tokens are embedded, which modules the layers are, what stands between a row's tokens and the classifier. What a
layer must do is call attention through transformers' interface and hand on the keyword arguments it was given.

The model here is made up: post-norm layers of one projection, learned positions, and the mean of the tokens as
what the classifier reads. Trained for a few seconds on a made-up task, it leaves early.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import pabee_fast as pf


class PocketConfig(PretrainedConfig):
    model_type = "pocket"

    vocab_size: int = 64
    hidden_size: int = 32
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    max_position_embeddings: int = 48
    initializer_range: float = 0.1


class PocketAttention(nn.Module):
    is_causal = False

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        self.config = config
        self.joined = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        heads, size = self.config.num_attention_heads, self.config.hidden_size
        q, k, v = self.joined(hidden).view(*hidden.shape[:2], 3, heads, size // heads).permute(2, 0, 3, 1, 4)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out, _ = attend(self, q, k, v, attention_mask, scaling=(size // heads) ** -0.5, **kwargs)
        return out.flatten(2)


class PocketLayer(nn.Module):
    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        self.attention = PocketAttention(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        hidden = hidden + self.attention(hidden, attention_mask, **kwargs)  # kwargs: the runtime sends `layout`
        return self.norm(hidden + nn.functional.gelu(self.dense(hidden)))


class PocketForSequenceClassification(PreTrainedModel):
    config_class = PocketConfig
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: PocketConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([PocketLayer(config) for _ in range(config.num_hidden_layers)])
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        visible = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=attention_mask)
        states = [hidden]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        weights = visible[..., None].to(hidden.dtype)
        logits = self.classifier((states[-1] * weights).sum(dim=1) / weights.sum(dim=1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=tuple(states))


class Pocket(pf.Family):
    """What early exit needs to know of it."""

    model_type = "pocket"
    inputs = ("input_ids", "position_ids")  # positions are numbered here if the model's forward takes none

    def pooling(self, model: Any) -> str:
        return "mean"

    def embed(self, model: Any, layout: Any, **inputs: Tensor) -> Tensor:
        return (model.words(inputs["input_ids"]) + model.places(inputs["position_ids"]))[None]

    def layers(self, model: Any) -> list[nn.Module]:
        return list(model.layers)

    def pooler(self, model: Any) -> None:
        return None  # the classifier reads the mean itself

    def dropout(self, model: Any) -> nn.Module:
        return nn.Identity()


def register() -> None:
    """Once in a process: transformers' tables, so that directories load, and pabee_fast's."""
    AutoConfig.register("pocket", PocketConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(PocketConfig, PocketForSequenceClassification, exist_ok=True)
    pf.register_family(Pocket(), replace=True)


def some_rows(count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of 4 to 40 tokens, padded with 0; the label says whether words of the upper half are in the majority."""
    lengths = torch.randint(4, 41, (count, 1))
    mask = torch.arange(40) < lengths
    share = torch.rand(count, 1)
    upper = torch.rand(count, 40) < share
    ids = torch.where(upper, torch.randint(33, 64, (count, 40)), torch.randint(1, 33, (count, 40))) * mask
    labels = ((upper & mask).sum(dim=1) * 2 > mask.sum(dim=1)).long()
    return {"input_ids": ids, "attention_mask": mask.long()}, labels


def main() -> None:
    torch.manual_seed(0)
    register()
    model = PocketForSequenceClassification(PocketConfig(num_labels=2))
    pf.attach_heads(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        rows, labels = some_rows(64)
        loss = model(**rows, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.eval()
    rows, labels = some_rows(512)
    with torch.no_grad():
        full = model(**rows).logits
    same = pf.accelerate(model, pf.FullDepth())(**rows).logits
    print(f"full depth differs by {float((same - full).abs().max() / full.abs().max()):.1e} of the largest logit")
    early = pf.accelerate(model, pf.Patience(2))(**rows)
    print(f"accuracy at full depth {float((full.argmax(1) == labels).float().mean()):.3f}")
    print(f"accuracy leaving early {float((early.logits.argmax(1) == labels).float().mean()):.3f}")
    print(f"mean exit layer {float(early.exit_layers.float().mean()):.2f} of {model.config.num_hidden_layers}")


if __name__ == "__main__":
    main()
