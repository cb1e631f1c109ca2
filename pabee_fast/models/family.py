"""What a model family looks like to the runtime: which tokens it keeps, embed, layers, pooled feature, classifier.

A family is stateless; its methods take the Hugging Face model, as `Any`, since its parts are named dynamically. This
module holds the post-norm encoders' common shape, and a family's own file only what differs.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pabee_fast.errors import UnsupportedError
from pabee_fast.kernels.checks import Pooler
from pabee_fast.layout import Layout
from pabee_fast.models.block import Block, Places
from pabee_fast.models.head import POOLINGS, RowMap, pooler_of, through_pooler
from pabee_fast.say import say_once

logger = logging.getLogger(__name__)


class Family:
    """A post-norm encoder with a pooler over the first token, as BERT; the base of the others.

    Subclass it for a model of your own, override what differs, and hand an instance to `pf.register_family`; the
    example `examples/custom_family.py` does so.
    """

    model_type = ""
    """`config.model_type` of its models."""
    class_names = "ForSequenceClassification"
    """What the names of the classes end with that it serves."""
    inputs: tuple[str, ...] = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids")
    """What the model's forward takes of a row's tokens."""
    poolings: tuple[str, ...] = POOLINGS
    """Which tokens its heads may read."""
    is_causal = False
    """Whether a token sees none of those after it; a model whose config says otherwise is refused."""

    def has_position_table(self, model: Any) -> bool:
        """Return whether a token's place is looked up in a table of `config.max_position_embeddings` lines."""
        return hasattr(model.config, "max_position_embeddings")

    def check(self, model: Any) -> None:
        """Raise UnsupportedError for a variant whose layers mean something else when packed."""
        config = model.config
        is_causal = getattr(getattr(self.backbone(model), "config", config), "is_causal", None)
        if is_causal is not None and is_causal != self.is_causal:  # transformers' masks follow it, whatever layers say
            raise UnsupportedError(
                f"config.is_causal={is_causal}: family {self.model_type!r} is served with {self.is_causal}; set it to "
                f"{self.is_causal} if the model was trained so, or leave the model as it is"
            )
        for name in ("is_decoder", "add_cross_attention"):
            if getattr(config, name, False):
                raise UnsupportedError(
                    f"config.{name}=True: early exit serves classifiers that read nothing but their input; load it "
                    f"with {name}=False"
                )
        if getattr(config, "position_embedding_type", "absolute") not in (None, "absolute"):
            raise UnsupportedError(
                f"config.position_embedding_type={config.position_embedding_type!r}: only 'absolute' is supported"
            )

    def backbone(self, model: Any) -> Any:
        """Return the module that holds embeddings and encoder."""
        return model.base_model

    def pooling(self, model: Any) -> str:
        """Return which tokens of a row the model's own classifier reads: "first", "last" or "mean"."""
        return "first"

    def position_ids(self, model: Any, input_ids: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """Return positions in the padded layout, [rows, length] int64, as the stock model numbers them; `shape` is that
        layout's, `input_ids` are None where the caller gives embeddings."""
        device = input_ids.device if input_ids is not None else None
        return torch.arange(shape[1], device=device).expand(shape)

    def kept(self, model: Any, input_ids: Tensor | None, visible: Tensor) -> Tensor:
        """Return which tokens of the padded layout a packed row is made of, [rows, length] bool.

        A token that is kept although its mask hides it asks and answers, but nobody attends to it.

        Args:
            input_ids: [rows, length]; None where the caller gives embeddings.
            visible: [rows, length] bool, what the attention mask shows.
        """
        kept = visible.clone()
        kept[:, 0] = True  # the heads read it, hidden or not, as the stock model does
        return kept

    def max_length(self, model: Any) -> int:
        """Return the most tokens that a row may have."""
        return model.config.max_position_embeddings

    def separates_texts(self, model: Any, use_cache: bool | None) -> bool:
        """Return whether the stock model, called without a mask, takes a row whose given positions start anew for
        several texts that do not see each other; `use_cache` is what the caller said. Only the last one is then run."""
        return False

    def embed(self, model: Any, layout: Layout, **inputs: Tensor) -> Tensor:
        """Return the hidden states that enter layer 1, [1, tokens, hidden_size], of packed inputs [tokens, ...]."""
        given = {name: values[None] for name, values in inputs.items()}
        return self.backbone(model).embeddings(**{"input_ids": None, **given})

    def beside(self, model: Any, hidden: Tensor, position_ids: Tensor) -> Mapping[str, Tensor]:
        """Return what layers are given beside hidden states, [tokens, ...] each: it moves with the tokens when rows
        leave.

        Args:
            hidden: [1, tokens, hidden_size], as `embed` gives them.
            position_ids: [tokens].
        """
        return {}

    def layers(self, model: Any) -> Sequence[nn.Module]:
        """Return the layers in order, a shared one repeated."""
        return list(self.backbone(model).encoder.layer)

    def windows(self, model: Any) -> Iterable[tuple[int | None, int | None]]:
        """Of each layer the sliding window that it was built with, and the one that the config says now."""
        return ()

    def run_layer(self, model: Any, layer: Any, hidden: Tensor, layout: Layout, beside: Mapping[str, Tensor]) -> Tensor:
        """Return one layer of packed rows, [1, tokens, hidden_size] to the same shape; attention goes through
        `runtime.attention.packed_attention`, which transformers' layers call by name and hand `layout` on to."""
        return call_layer(layer, hidden, layout)

    def behind(self, model: Any, layer: Any) -> Callable[[Tensor, Tensor, Layout], Tensor] | None:
        """Return what makes of one layer's input and output, both [1, tokens, hidden_size], what the next layer and the
        heads read; None: they read the output."""
        return None

    def called(self, layer: Any) -> tuple[nn.Module, ...]:
        """Return what `run_layer` calls of one of `layers`: whatever its owner did to the rest would be passed over."""
        return (layer,)

    def blocks(self, layer: Any) -> tuple[Block, ...]:
        """Return the post-norm blocks, in order, that one of `layers` is made of while its modules are transformers'
        own; none where it is something else."""
        return ()

    def places(self, model: Any) -> Places | None:
        """Return what the blocks of all layers know of relative places; None: they attend by content alone, and a token
        that the mask hides asks as others do."""
        return None

    def norm(self, model: Any) -> RowMap | None:
        """Return what every token goes through behind the last layer, before any head; None: nothing."""
        return None

    def pooler(self, model: Any) -> Pooler | RowMap | None:
        """Return what stands between the tokens that a head reads and its linear."""
        return pooler_of(self.backbone(model).pooler.dense, "tanh")

    def pooled(self, model: Any, tokens: Tensor) -> Tensor:
        """Return the heads' input for training, [rows, size], with the stock model's dropout, from what they read."""
        return self.dropout(model)(through_pooler(self.pooler(model), tokens))

    def dropout(self, model: Any) -> nn.Module:
        """Return what the stock model applies in front of its classifier in training."""
        return model.dropout

    def classifier(self, model: Any) -> nn.Linear:
        """Return the model's own classifier, which is the last head."""
        return model.classifier

    def layer_outputs(self, model: Any, hidden_states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return one [rows, length, hidden_size] a layer, out of the stock model's `hidden_states`; the last may have
        gone through `norm`."""
        return hidden_states[1:]


def call_layer(layer: nn.Module, hidden: Tensor, layout: Layout, **beside: Any) -> Tensor:
    """Return what a layer makes of packed rows, [1, tokens, hidden_size] to the same shape.

    Raises:
        UnsupportedError: nothing in it asked packed attention, so that each row has seen all the others.
    """
    layout.asked.clear()
    out = layer(hidden, layout=layout, **beside)
    if not layout.asked:
        raise UnsupportedError(
            f"{type(layer).__name__} attends by other means than transformers' AttentionInterface and its config, so "
            "rows of a packed batch would see each other: give it the attention module back that it had, or let "
            "yours call the interface and hand on its keyword arguments"
        )
    return out if isinstance(out, Tensor) else out[0]


class DenseHeadFamily(Family):
    """Encoders whose classifier is a module of its own: dense layer, activation and linear, as RoBERTa's."""

    activation = "tanh"

    def pooler(self, model: Any) -> Pooler | RowMap | None:
        return pooler_of(model.classifier.dense, self.activation)

    def pooled(self, model: Any, tokens: Tensor) -> Tensor:
        return super().pooled(model, self.dropout(model)(tokens))

    def dropout(self, model: Any) -> nn.Module:
        return model.classifier.dropout

    def classifier(self, model: Any) -> nn.Linear:
        return model.classifier.out_proj


def word_embeddings(table: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return [tokens, hidden_size] of packed inputs: what the caller embedded, or `table` of the input_ids."""
    return inputs["inputs_embeds"] if "inputs_embeds" in inputs else table(inputs["input_ids"])


def check_kind(model: Any, family: Family) -> None:
    """Raise UnsupportedError for a class of another kind."""
    if not isinstance(model, PreTrainedModel) or not type(model).__name__.endswith(family.class_names):
        raise UnsupportedError(
            f"{type(model).__name__} is none of the classes *{family.class_names} that family {family.model_type!r} "
            "serves: load it with AutoModelForSequenceClassification, or AutoModelForImageClassification for images"
        )
    linear, outputs = family.classifier(model), model.config.num_labels
    if not isinstance(linear, nn.Linear):
        raise UnsupportedError(
            f"the classifier is a {torch.typename(linear)}: the exit step reads torch.nn.Linear; merge adapters first "
            f"(merge_and_unload), and quantise the backbone alone ({_quantise_backbone(model)})"
        )
    if linear.out_features != outputs:
        raise UnsupportedError(
            f"the classifier has {linear.out_features} outputs and config.num_labels is {outputs}: set "
            f"model.config.num_labels = {linear.out_features}"
        )


def check_weights(model: Any) -> None:
    """Raise UnsupportedError for weights that are elsewhere, or that the exit step cannot read.

    What torch's `quantize_dynamic` makes of the backbone is run, and a row given alone gets the quantised model's own
    answer, but for int8 values that round to a neighbour. Among others a row may get another answer, since each product
    takes one scale from all the tokens it is given; that is said.
    """
    if "_hf_hook" in vars(model):
        raise UnsupportedError(
            "the model is dispatched by accelerate (device_map), which replaced its forward and moves its weights: "
            "load it on one device, without device_map or with device_map={'': device}"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UnsupportedError("the model has weights on the meta device, that is none: load it with its weights")
    if any(parameter.dtype == torch.float64 for parameter in model.parameters()):
        raise UnsupportedError("the model has float64 weights, which no kernel takes: model.float()")
    if getattr(model, "is_quantized", False) or not all(p.is_floating_point() for p in model.parameters()):
        raise UnsupportedError(
            "the model was quantised in loading, or has weights of whole numbers: load it without quantization_config, "
            f"in dtype=torch.bfloat16 for instance; for int8 on a CPU let torch quantise the float32 model's backbone "
            f"({_quantise_backbone(model)})"
        )
    if any(type(module).__module__.startswith("torch.ao.nn.quantized.dynamic") for module in model.modules()):
        say_once(
            logger,
            model,
            "layers are dynamically quantised: their scales follow all rows that are computed at once, so that a row's "
            "answer depends on the rows beside it, as it does without early exit",
        )


def _quantise_backbone(model: Any) -> str:
    name = f"model.{model.base_model_prefix}"
    return f"{name} = torch.ao.quantization.quantize_dynamic({name}, {{torch.nn.Linear}})"
