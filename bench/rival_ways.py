"""What others run on the same rows: each way is made of the stock model, and takes padded batches or texts.

A way that cannot be had here raises `LeftOut`, which says why: a package that is not installed, a precision that the
processor does not multiply. Those that take padded batches are for the CPU, with as many threads as torch has.
"""

import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Padded = Callable[[Mapping[str, Tensor]], Tensor]
"""A padded batch, input_ids and attention_mask [rows, longest] int64, to logits [rows, classes] float32."""

OfTexts = Callable[[Sequence[str], int], Tensor]
"""Texts and a batch size, to logits [rows, classes] float32 in the texts' order."""


class LeftOut(Exception):
    """A way that cannot be had here; its text says why."""


def need(*packages: str) -> None:
    """Raise LeftOut for the first package that is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise LeftOut(f"{package} is not installed")


def stock(model: Any) -> Padded:
    """transformers' own forward (sdpa)."""
    return lambda batch: model(**batch).logits


def compiled(model: Any) -> Padded:
    """torch.compile of the stock model, one graph for all shapes."""
    run = torch.compile(copy.deepcopy(model), dynamic=True)
    return lambda batch: run(**batch).logits


def int8(model: Any) -> Padded:
    """torch's dynamic int8, see `quantised`."""
    return stock(quantised(model))


def quantised(model: Any) -> Any:
    """Return a copy whose backbone is in torch's dynamic int8, with a scale for each output channel; but for what reads
    the widest states, since one scale for all of these costs most of what int8 loses."""
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    model = copy.deepcopy(model)
    backbone = getattr(model, model.base_model_prefix)
    chosen = {
        name: per_channel_dynamic_qconfig
        for name, part in backbone.named_modules()
        if isinstance(part, nn.Linear) and part.in_features <= part.out_features
    }
    setattr(model, model.base_model_prefix, quantize_dynamic(backbone, chosen))
    return model


def unpadded(model: Any) -> Padded:
    """The way of sdadas/unpad-impl, which is on no package index and needs flash attention: the stock model runs on the
    batch's tokens laid end to end, and attention is told where rows begin. Here sdpa attends over rows of one length
    together. BERT only."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("bench_unpadded", _attend_within_rows)
    AttentionMaskInterface.register("bench_unpadded", lambda *args, **options: None)
    model = copy.deepcopy(model)
    model.set_attn_implementation("bench_unpadded")

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"].bool()
        lengths = mask.sum(1)
        ends = lengths.cumsum(0)
        places = torch.arange(mask.shape[1]).expand_as(mask)[mask][None]
        ids = batch["input_ids"][mask][None]
        hidden = model.bert(ids, position_ids=places, row_lengths=lengths.tolist()).last_hidden_state[0]
        return model.classifier(model.bert.pooler(hidden[ends - lengths][:, None]))

    return run


def _attend_within_rows(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, *, row_lengths: list[int], **options: Any
) -> tuple[Tensor, None]:
    """[1, heads, tokens, size] each, to [1, tokens, heads, size]."""
    heads, tokens, size = query.shape[1:]
    out = query.new_empty(tokens, heads, size)
    first = number = 0
    while number < len(row_lengths):
        length, rows = row_lengths[number], 1
        while number + rows < len(row_lengths) and row_lengths[number + rows] == length:
            rows += 1
        last = first + rows * length
        q, k, v = (each[0, :, first:last].unflatten(1, (rows, length)).transpose(0, 1) for each in (query, key, value))
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        out[first:last] = attended.transpose(1, 2).reshape(rows * length, heads, size)
        first, number = last, number + rows
    return out[None], None


def exported(model: Any, path: Path) -> Path:
    """Write the stock model as ONNX with free rows and lengths, unless it is there."""
    need("onnx", "onnxscript")
    if not path.is_file():
        example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        free = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=512)}
        torch.onnx.export(
            copy.deepcopy(model),
            (),
            path,
            kwargs=example,
            input_names=list(example),
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(example, free),
            dynamo=True,
            verbose=False,
        )
    return path


def onnx_runtime(model: Any, work: Path, *, in_int8: bool = False) -> Padded:
    """ONNX Runtime with all its graph optimisations; int8: dynamic, weights by channel."""
    need("onnxruntime")
    import onnxruntime

    path = exported(model, work / "model.onnx")
    if in_int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        target = work / "model-int8.onnx"
        if not target.is_file():
            quantize_dynamic(path, target, per_channel=True, weight_type=QuantType.QInt8)
        path = target
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        [logits] = session.run(None, {name: values.numpy() for name, values in batch.items()})
        return torch.from_numpy(logits)

    return run


def openvino(model: Any, work: Path, *, precision: str = "f32", in_int8: bool = False, rows: Any = None) -> Padded:
    """OpenVINO for latency, one stream; int8: weights and activations by NNCF, set by `rows`.

    Raises:
        LeftOut: also where the processor does not multiply bf16 itself.
    """
    need("openvino", *(["nncf"] if in_int8 else []))
    import openvino as ov

    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise LeftOut("OpenVINO names no bf16 among what this processor multiplies")
    graph = ov.convert_model(exported(model, work / "model.onnx"))
    if in_int8:
        import nncf

        given = nncf.Dataset([{name: values.numpy() for name, values in batch.items()} for batch in rows])
        graph = nncf.quantize(graph, given, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(graph, "CPU", options).create_infer_request()

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        found = request.infer({name: values.numpy() for name, values in batch.items()}, share_inputs=True)
        return torch.from_numpy(np.array(found["logits"]))

    return run


def in_pipeline(directory: Path, device: torch.device, dtype: torch.dtype) -> OfTexts:
    """transformers' pipeline on texts in the order given."""
    from transformers import pipeline

    piped = pipeline("text-classification", model=str(directory), device=device, dtype=dtype)
    places = piped.model.config.label2id

    def run(texts: Sequence[str], size: int) -> Tensor:
        logits = torch.empty(len(texts), len(places))
        said = piped(list(texts), batch_size=size, truncation=True, top_k=None, function_to_apply="none")
        for row, answers in enumerate(said):
            for answer in answers:
                logits[row, places[answer["label"]]] = answer["score"]
        return logits

    return run


def by_length(way: OfTexts) -> OfTexts:
    """The same on texts sorted by their number of words, the longest first."""

    def run(texts: Sequence[str], size: int) -> Tensor:
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row].split()))
        logits = way([texts[row] for row in order], size)
        return torch.empty_like(logits).index_copy_(0, torch.tensor(order), logits)

    return run


def cross_encoder(directory: Path, device: torch.device, dtype: torch.dtype) -> OfTexts:
    """sentence-transformers' CrossEncoder, which sorts. It takes pairs alone, so that a row has one token more."""
    need("sentence_transformers")
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(directory), device=device.type, model_kwargs={"dtype": dtype})

    def run(texts: Sequence[str], size: int) -> Tensor:
        pairs: Any = [[text, ""] for text in texts]
        found: Any = encoder.predict(
            pairs, batch_size=size, show_progress_bar=False, activation_fn=nn.Identity(), convert_to_tensor=True
        )
        return found.float().cpu()

    return run
