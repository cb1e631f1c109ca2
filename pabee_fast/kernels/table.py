"""The table of kernels: which module serves each function of the runtime on CUDA.

A new kernel is a line here, and lines in bench/specialisations.py, which says what is compiled ahead of time.
"""

from . import (
    add_norm,
    attention,
    bias_act,
    compact,
    disentangled_attention,
    embed_norm,
    exit_step,
    linear_gelu,
    pool,
    short_attention,
)

FUNCTIONS = {
    "exit_step": exit_step,
    "plan": compact,
    "gather": compact,
    "pool": pool,
    "attention": attention,
    "short_attention": short_attention,
    "disentangled_attention": disentangled_attention,
    "add_norm": add_norm,
    "bias_act": bias_act,
    "linear_gelu": linear_gelu,
    "embed_norm": embed_norm,
}
"""Name of a function, as in `reference` -> the module that launches it under that name."""

MODULES = tuple(dict.fromkeys(FUNCTIONS.values()))

REPEATED = {
    "exit_step": exit_step.ExitStep,
    "plan": compact.Planner,
    "pool": pool.Pool,
    "short_attention": short_attention.JoinedAttention,
    "add_norm": add_norm.AddNorm,
    "bias_act": bias_act.BiasAct,
}
"""Name of a function -> what launches it again and again at one place of a model, where some arguments stay: the class
takes these, its instances the others, all by name and unchecked."""
