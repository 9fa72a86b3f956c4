"""Images of plain colours in class folders, and boxes in them."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.distill.conftest import COLOURS

CLASSES = ("red", "green", "blue")


def write_images(root: Path, count: int, size: int) -> None:
    """`count` training images and a few validation images of plain colours."""
    contents = {}
    for name in CLASSES:
        file = io.BytesIO()
        pixels = np.full((size, size, 3), COLOURS[name], np.uint8)
        Image.fromarray(pixels).save(file, "png")
        contents[name] = file.getvalue()
    for split, images in (("train", count), ("val_on_train", 30)):
        for number in range(images):
            name = CLASSES[number % len(CLASSES)]
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:05}.png").write_bytes(contents[name])


def write_boxes(folder: Path, path: Path, size: int) -> None:
    """A COCO export with one box in each image of the class folders in `folder`."""
    files = sorted(folder.glob("*/*.png"))
    images = [
        {"id": i, "file_name": str(file.relative_to(path.parent)), "width": size, "height": size}
        for i, file in enumerate(files)
    ]
    box = [size // 4, size // 4, size // 2, size // 2]
    annotations = [
        {"image_id": i, "category_id": CLASSES.index(file.parent.name), "bbox": box}
        for i, file in enumerate(files)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document))
