"""Image classification by a vision transformer: `python examples/images.py MODEL_DIRECTORY [IMAGE ...]`.

The directory holds a `ViTForImageClassification` with heads and its image processor. Without images, two are made up.
"""

from typing import Annotated

import numpy as np
import typer
from PIL import Image
from transformers import AutoImageProcessor, pipeline

import pabee_fast as pf


def made_up(count: int = 8, size: int = 32) -> list[Image.Image]:
    """Noise in shades of one colour each."""
    rng = np.random.default_rng(0)
    colours = rng.random((count, 1, 1, 3))
    return [Image.fromarray((255 * c * rng.random((size, size, 1))).astype(np.uint8)) for c in colours]


def main(directory: str, image: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    images = [Image.open(path).convert("RGB") for path in image or ()] or made_up()
    model = pf.from_pretrained(directory, policy=pf.Patience(2))
    processor = AutoImageProcessor.from_pretrained(directory)
    classify = pipeline("image-classification", model=model, image_processor=processor, batch_size=8)
    for answers in classify(images):
        print(answers[0])
    exits = model(**processor(images, return_tensors="pt")).exit_layers
    print(f"mean exit layer {float(exits.float().mean()):.2f} of {model.config.num_hidden_layers}")


if __name__ == "__main__":
    typer.run(main)
