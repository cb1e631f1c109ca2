"""`pabee-fast info`."""

from dataclasses import dataclass
from typing import Annotated

from pabee_fast.arguments import require_model
from pabee_fast.cli.loading import loading
from pabee_fast.cli.options import takes
from pabee_fast.options import MODEL, DeviceOptions, Option
from pabee_fast.shown import plain


@dataclass(frozen=True, kw_only=True)
class InfoOptions(DeviceOptions):
    """What `pabee-fast info` was asked for."""

    model: Annotated[str | None, Option(MODEL, "Model directory: also tells its family and heads.")] = None

    def check(self) -> None:
        super().check()
        if self.model is not None:
            require_model(self.model)


@takes(InfoOptions)
def info_command(options: InfoOptions) -> None:
    """Tell what would run here, and why: device, precision, attention, layers, kernels."""
    with loading():
        import torch
        import transformers

        from pabee_fast import __version__
        from pabee_fast.calibration.guarantee import guarantee_of
        from pabee_fast.errors import InputError
        from pabee_fast.models import FAMILIES
        from pabee_fast.models.heads import classifies, has_heads
        from pabee_fast.models.padded import PaddedFamily
        from pabee_fast.runtime import ops
        from pabee_fast.runtime.engine import Engine
        from pabee_fast.scoring.load import Setting, load_model
        from pabee_fast.scoring.tokens import load_tokenizer, tokenizer_in_use

    setting = Setting.choose(options.device, options.dtype)
    lines = {
        "pabee-fast": __version__,
        "torch, transformers": f"{torch.__version__}, {transformers.__version__}",
        "device": setting.device_name,
        "dtype": f"{setting.dtype_name} ({setting.dtype_reason})",
        "exit step, compaction": setting.kernels,
        "attention": setting.attention(),
        "layers": setting.layers,
        "families": ", ".join(FAMILIES),
    }
    model = options.model
    if model is not None:
        engine = Engine(load_model(model, setting))
        config = engine.model.config
        stored = guarantee_of(engine.model)
        heads = f"{len(engine.layers)}, the model's own included" if has_heads(engine.model) else "none but its own"
        attention_heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // attention_heads
        is_grouped = getattr(config, "num_key_value_heads", attention_heads) != attention_heads
        attention = setting.attention(head_dim, is_grouped=is_grouped)
        if isinstance(engine.family, PaddedFamily):
            is_padded = engine.layers.describe().startswith("stock")
            own = f"{config.model_type}'s own, over rows padded to one length"
            attention = own if is_padded else ops.disentangled_in_use(engine.device, head_dim)
        tokenizer = "none, for images"
        if classifies(config) == "texts":
            try:
                tokenizer = tokenizer_in_use(load_tokenizer(model))
            except InputError as error:  # what is told of the model does not need one
                tokenizer = f"none: {error}"
        lines |= {
            "tokenizer": tokenizer,
            "attention": attention,
            "layers": engine.layers.describe(),
            "model": f"{config.model_type}, {len(engine.layers)} layers of {config.hidden_size}, {engine.kind} answers",
            "heads": heads,
            "weights": f"{engine.model.num_parameters():,} values, all finite",
            "policy": "none stored" if stored is None else f"{stored.policy}; {stored.statement()}",
            "token budget": str(engine.token_budget),
        }
    for name, value in lines.items():
        print(plain(f"{name + ':':<24}{value}"))
