"""The end of the demo: a new class is added to the classifier without training.

The class (`demo.world.NEW_CLASS`) is neither in the training data nor in the release. `distill
predict` classifies its photos before it is added, with a description, and also with example photos.
"""

import io
import json
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from contract import CLASSIFIER_ARTIFACT
from demo.stack import BIN, DemoError, Service, child_environment
from demo.world import NEW_CLASS, render

PHOTOS = 40  # to classify
EXAMPLES = 5  # example photos of the class
DESCRIPTION = "A heart-shaped charm, bright blue, with round yellow dots and two pointed horns."


def fetch_classifier(service: Service, job: int, folder: Path) -> None:
    """Extract the classifier of a finished job to `folder`; raises DemoError if it has none."""
    response = service.send("GET", f"/v1/jobs/{job}/artifacts/{CLASSIFIER_ARTIFACT}")
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        archive.extractall(folder)


def add_new_class(classifier: Path, photos: Path, console: Console) -> None:
    """Print predictions for photos of the new class before and after it is added.

    The class is saved in the folder `classifier`. Raises DemoError if `distill predict` fails.
    """
    examples = photos.with_name(f"{photos.name}-examples")
    rng = np.random.default_rng(0)
    render_photos(photos, PHOTOS, rng)
    render_photos(examples, EXAMPLES, rng)
    before = predict(classifier, photos)
    described = predict(classifier, photos, "--add", f"{NEW_CLASS.name}={DESCRIPTION}", "--save")
    with_photos = predict(
        classifier, photos, "--examples", f"{NEW_CLASS.name}={examples}", "--save"
    )
    wrong = ", ".join(f"{name} {count}" for name, count in before.most_common(3))
    console.print(f"\nA new class, without photos or texts so far: {NEW_CLASS.name}")
    console.print(f"$ distill predict {classifier} {photos}", soft_wrap=True)
    console.print(f"before: {before[NEW_CLASS.name]} of {PHOTOS} correct; predicted {wrong}, …")
    console.print(f'… --add "{NEW_CLASS.name}={DESCRIPTION}"', soft_wrap=True)
    console.print(f"with a description: {described[NEW_CLASS.name]} of {PHOTOS} correct")
    console.print(f'… --examples "{NEW_CLASS.name}={examples}"', soft_wrap=True)
    console.print(
        f"also with {EXAMPLES} example photos: {with_photos[NEW_CLASS.name]} of {PHOTOS} correct"
    )
    console.print(f"The classifier with the new class: {classifier}", soft_wrap=True)


def render_photos(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Write `count` images of the new class."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(render(NEW_CLASS.look, rng)).save(folder / f"{number:02d}.png")


def predict(classifier: Path, photos: Path, *options: str) -> Counter[str]:
    """The number of photos by predicted class, from the command `distill predict`."""
    command = [str(BIN / "distill"), "predict", str(classifier), str(photos), "--json", *options]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    if done.returncode:
        raise DemoError(f"distill predict: {done.stderr.strip()}")
    classified = json.loads(done.stdout)["photos"]
    return Counter(photo["candidates"][0]["name"] for photo in classified)
