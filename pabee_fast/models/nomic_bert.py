"""Nomic BERT: post-norm and gated, with rotary positions in place of learned ones."""

from pabee_fast.models.rotary import RotaryFamily


class NomicBert(RotaryFamily):
    model_type = "nomic_bert"
