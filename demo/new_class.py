"""The end of the demo: its classifier learns a class without any training.

Neither the students nor the release know the class (`demo.world.NEWCOMER`). `distill predict`
classifies its photos before a description is given, with it, and with a few photos as well.
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
EXAMPLES = 5  # other photos of the class
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
    examples = photos.with_name(f"{photos.name}-examples")
    rng = np.random.default_rng(0)
    render_photos(photos, PHOTOS, rng)
    render_photos(examples, EXAMPLES, rng)
    before = predict(classifier, photos)
    added = predict(classifier, photos, "--add", f"{NEWCOMER.name}={DESCRIPTION}", "--save")
    shown = predict(classifier, photos, "--examples", f"{NEWCOMER.name}={examples}", "--save")
    wrong = ", ".join(f"{name} {count}" for name, count in before.most_common(3))
    console.print(f"\nA class of which nobody has seen a photo or a text: {NEWCOMER.name}")
    console.print(f"$ distill predict {classifier} {photos}", soft_wrap=True)
    console.print(f"before: {before[NEWCOMER.name]} of {PHOTOS} right; called {wrong}, …")
    console.print(f'… --add "{NEWCOMER.name}={DESCRIPTION}"', soft_wrap=True)
    console.print(f"after: {added[NEWCOMER.name]} of {PHOTOS} right")
    console.print(f'… --examples "{NEWCOMER.name}={examples}"', soft_wrap=True)
    console.print(f"with {EXAMPLES} other photos: {shown[NEWCOMER.name]} of {PHOTOS} right")
    console.print(f"The classifier, which knows it now: {classifier}", soft_wrap=True)


def render_photos(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Write `count` images of the new class."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(render(NEWCOMER.look, rng)).save(folder / f"{number:02d}.png")


def predict(classifier: Path, photos: Path, *options: str) -> Counter[str]:
    """How many photos get which class by `distill predict`, as users start it."""
    command = [str(BIN / "distill"), "predict", str(classifier), str(photos), "--json", *options]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    if done.returncode:
        raise DemoError(f"distill predict: {done.stderr.strip()}")
    found = json.loads(done.stdout)["photos"]
    return Counter(photo["candidates"][0]["name"] for photo in found)
