"""Studies on tasks: what exits cost in accuracy, and what they give."""
