"""Columns of any type as texts, for csv and for JSON: whole columns at a time, by Arrow."""

import base64

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pabee_fast.tables.jsonl import json_text

TEXT = pa.large_string()
_NOT_JSON = ("nan", "-nan", "inf", "-inf")  # no array yet: the first that pyarrow makes of a list imports pandas


def side_by_side(*parts: pa.Array | str, between: str = "") -> pa.Array:
    """Return each row's texts joined; a str stands in every row."""
    return pc.binary_join_element_wise(
        *(pa.scalar(part, TEXT) if isinstance(part, str) else part for part in (*parts, between))
    )


def bytes_of(texts: pa.Array) -> bytes | memoryview:
    """Return the texts, one after the other, of what `side_by_side` gave."""
    _, offsets, data = texts.buffers()
    return memoryview(data)[: np.frombuffer(offsets, np.int64)[len(texts)]] if len(texts) else b""


def json_bodies(batch: pa.RecordBatch) -> list[str]:
    """Return each row as a JSON object without its braces."""
    return json_objects(batch).to_pylist()


def json_objects(batch: pa.RecordBatch) -> pa.Array:
    """Return each row as a JSON object without its braces."""
    if not batch.num_columns:
        return pa.array([""] * batch.num_rows, TEXT)
    named = zip(batch.schema.names, batch.columns, strict=True)
    return side_by_side(
        *(side_by_side(f"{json_text(name)}: ", _json_values(column)) for name, column in named), between=", "
    )


def _json_values(column: pa.Array) -> pa.Array:
    """Return each value as JSON."""
    texts, is_string = text_values(column)
    if is_string:
        return _json_strings(texts).fill_null("null")
    return pc.if_else(pc.is_in(texts, pa.array(_NOT_JSON, TEXT)), pa.scalar(None, TEXT), texts).fill_null("null")


def _json_strings(texts: pa.Array) -> pa.Array:
    in_quotes = side_by_side('"', texts, '"')
    escaped = pc.match_substring_regex(texts, r'["\\\x00-\x1f]').fill_null(False)
    return pc.replace_with_mask(
        in_quotes, escaped, pa.array([json_text(text) for text in texts.filter(escaped).to_pylist()], TEXT)
    )


def text_values(column: pa.Array) -> tuple[pa.Array, bool]:
    """Return each value as text, null for null; and whether JSON would quote it."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return text_values(column.storage)
    if _is(kind, "dictionary"):
        return text_values(column.dictionary_decode())
    if _is(kind, "string", "large_string", "string_view"):
        return column.cast(TEXT), True
    if _is(kind, "floating"):
        texts = _cast(column)
        # Arrow writes 1.0 as 1, which would be read back as an integer.
        return pc.if_else(pc.match_substring_regex(texts, r"^-?\d+$"), side_by_side(texts, ".0"), texts), False
    if _is(kind, "boolean", "integer", "decimal", "duration"):
        return _cast(column), False
    if _is(kind, "timestamp", "date", "time"):
        return _cast(column), True
    if _is(kind, "list", "large_list", "fixed_size_list"):
        ends = np.cumsum(pc.list_value_length(column).fill_null(0).to_numpy())
        lists = pa.ListArray.from_arrays(pa.array([0, *ends], pa.int32()), _json_values(column.flatten()))
        return _where_valid(column, side_by_side("[", pc.binary_join(lists, pa.scalar(", ", TEXT)), "]")), False
    if _is(kind, "struct"):
        fields = pa.RecordBatch.from_arrays(column.flatten(), [field.name for field in kind])
        bodies = json_objects(fields) if kind.num_fields else pa.array([""] * len(column), TEXT)
        return _where_valid(column, side_by_side("{", bodies, "}")), False
    if _is(kind, "map"):
        return text_values(column.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))))
    is_bytes = _is(kind, "binary", "large_binary", "fixed_size_binary", "binary_view")
    as_text = (lambda value: base64.b64encode(value).decode()) if is_bytes else json_text
    return pa.array([None if value is None else as_text(value) for value in column.to_pylist()], TEXT), is_bytes


def _cast(column: pa.Array) -> pa.Array:
    return pc.cast(column, pa.string()).cast(TEXT)


def _where_valid(column: pa.Array, texts: pa.Array) -> pa.Array:
    return pc.if_else(column.is_valid(), texts, pa.scalar(None, TEXT))


def _is(kind: pa.DataType, *names: str) -> bool:
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)
