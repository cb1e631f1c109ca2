"""How good answers are: GLUE's metrics, and what the heads of a model get wrong together.

Metrics come from scikit-learn and scipy. Answers and labels are tensors as `risks.answers` makes them.
"""
