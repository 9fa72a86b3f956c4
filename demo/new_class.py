"""The end of the demo: its classifier learns a class by a description, without any training.

Neither the students nor the release know the class (`demo.world.NEWCOMER`). `distill predict`
classifies its photos before and after the description is given.
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
from demo.world import NEWCOMER, render

PHOTOS = 40
DESCRIPTION = "A heart-shaped charm, bright blue, with round yellow dots and two pointed horns."


def fetch_classifier(service: Service, job: int, folder: Path) -> None:
    """Unpack the classifier of a finished job into `folder`; raises DemoError if it has none."""
    answer = service.send("GET", f"/v1/jobs/{job}/artifacts/{CLASSIFIER_ARTIFACT}")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(folder)


def add_new_class(classifier: Path, photos: Path, console: Console) -> None:
    """Print what the classifier says of photos of the new class before and after it was added.

    The class stays in the folder `classifier`. Raises DemoError if `distill predict` fails.
    """
    render_photos(photos)
    before = predict(classifier, photos)
    added = predict(classifier, photos, "--add", f"{NEWCOMER.name}={DESCRIPTION}", "--save")
    wrong = ", ".join(f"{name} {count}" for name, count in before.most_common(3))
    console.print(f"\nA class of which nobody has seen a photo or a text: {NEWCOMER.name}")
    console.print(f"$ distill predict {classifier} {photos}", soft_wrap=True)
    console.print(f"before: {before[NEWCOMER.name]} of {PHOTOS} right; called {wrong}, …")
    console.print(f'… --add "{NEWCOMER.name}={DESCRIPTION}"', soft_wrap=True)
    console.print(f"after: {added[NEWCOMER.name]} of {PHOTOS} right")
    console.print(f"The classifier, which knows it now: {classifier}", soft_wrap=True)


def render_photos(folder: Path) -> None:
    """Write PHOTOS images of the new class."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(PHOTOS):
        Image.fromarray(render(NEWCOMER.look, rng)).save(folder / f"{number:02d}.png")


def predict(classifier: Path, photos: Path, *options: str) -> Counter[str]:
    """How many photos get which class by `distill predict`, as users start it."""
    command = [str(BIN / "distill"), "predict", str(classifier), str(photos), "--json", *options]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    if done.returncode:
        raise DemoError(f"distill predict: {done.stderr.strip()}")
    found = json.loads(done.stdout)["photos"]
    return Counter(photo["candidates"][0]["name"] for photo in found)
