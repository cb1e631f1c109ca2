"""BERT: the post-norm encoder that the base class describes."""

from pabee_fast.models.family import Family


class Bert(Family):
    model_type = "bert"
