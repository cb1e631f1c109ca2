"""Fine-tuned models, their exits and what these cost, on sentence-classification tasks; see README.md beside this."""
