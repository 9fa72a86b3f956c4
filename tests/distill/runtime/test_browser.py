"""The page of docs/browser, and the browser's lines of a model card, in a real Chromium.

Needs Chromium (Debian's package `chromium`, or CHROMIUM=path), onnxruntime-web and, for the
accessibility check, axe-core: see CONTRIBUTING.md. What the page loads from a CDN comes from
node_modules, and nothing else may be fetched from elsewhere.
"""

import base64
import json
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data.files.image_file import open_image
from distill.data.splits import scan_split
from distill.runtime import Classifier
from tests.distill.runtime.serving import check_accessibility

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "browser"
CDN = re.compile(r"https://cdn\.jsdelivr\.net/npm/onnxruntime-web@([\d.]+)/dist/")
ORT_WEB = ROOT / "node_modules" / "onnxruntime-web"
CARD_CODE = re.compile(r"^```js\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Of a photo in base64: the pixels as the page gives them to the encoder, in base64.
PIXELS = """async ([content, size]) => {
  const { squarePixels } = await import("/classifier.js");
  const photo = await (await fetch(`data:image/png;base64,${content}`)).blob();
  return btoa(String.fromCharCode(...await squarePixels(photo, size)));
}"""


@pytest.fixture(scope="module")
def page_url(exported_charms, tmp_path_factory):
    """The page, with the classifier of the tests in the same folder, on a plain file server."""
    folder = tmp_path_factory.mktemp("browser")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    shutil.copytree(exported_charms.folder, folder / "classifier")
    shutil.copytree(exported_charms.folder, folder / "newer")
    manifest = (folder / "newer" / "classifier.json").read_text()
    (folder / "newer" / "classifier.json").write_text(
        manifest.replace('"version": 1', '"version": 99')
    )

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def tab(chromium, page_url):
    """A tab that has the package of the CDN, and nothing else beyond the file server."""
    version = CDN.search((PAGE / "index.html").read_text())[1]
    if not (ORT_WEB / "package.json").is_file():
        pytest.skip(f"no onnxruntime-web@{version} in node_modules: see CONTRIBUTING.md")
    assert json.loads((ORT_WEB / "package.json").read_text())["version"] == version

    def answer(route):
        if CDN.match(route.request.url):
            file = ORT_WEB / "dist" / route.request.url.rpartition("/")[2]
            route.fulfill(path=file, headers={"Access-Control-Allow-Origin": "*"})
        elif route.request.url.startswith((page_url, "data:", "blob:")):
            route.continue_()
        else:
            route.abort()

    context = chromium.new_context(base_url=page_url, viewport={"width": 400, "height": 900})
    context.route("**/*", answer)
    tab = context.new_page()
    tab.set_default_timeout(60_000)  # for machines that are busy
    yield tab
    context.close()


@pytest.fixture(scope="module")
def photos(charm_world, tmp_path_factory):
    """Of seen and unseen classes, some of them turned, large, oblong or partly transparent."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [path for split in ("seen", "unseen") for path in scan_split(charm_world, split).paths]
    found = paths[::4]
    large = Image.open(paths[1]).resize((401, 307), Image.Resampling.LANCZOS)
    turned = Image.Exif()
    turned[0x0112] = 6
    large.save(folder / "turned.jpg", exif=turned)
    large.crop((0, 0, 129, 64)).save(folder / "oblong.png")  # a half pixel too much, at 32 px
    clear = large.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size).point(lambda x: 255 * (x > 99)))
    clear.save(folder / "clear.png")
    return [*found, *(folder / name for name in ("turned.jpg", "oblong.png", "clear.png"))]


def test_a_person_drops_photos_and_sees_the_five_best_of_each(
    tab, photos, exported_charms, tmp_path
):
    tab.goto("/")
    tab.get_by_text("51 classes").wait_for()
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(photos[0].read_bytes()[:300])
    tab.set_input_files("#files", [*photos, damaged])
    tab.get_by_text("This photo cannot be classified").wait_for()
    cards = tab.locator(".card").evaluate_all(
        "cards => cards.map(card => [card.querySelector('.verdict').textContent,"
        " [...card.querySelectorAll('li')].map(row => [...row.children].map(x => x.textContent))])"
    )
    assert cards.pop(0)[1] == []  # the newest first
    predictions = Classifier.load(exported_charms.folder).classify(photos)
    for path, prediction, (verdict, rows) in zip(photos, predictions, reversed(cards), strict=True):
        expected = "None of these" if prediction.unknown else prediction.best.name
        assert verdict == expected, path
        assert [name for name, _ in rows] == [
            candidate.name for candidate in prediction.candidates
        ], path
        shares = [float(share.removesuffix(" %")) for _, share in rows]
        assert shares == pytest.approx(
            [100 * candidate.probability for candidate in prediction.candidates], abs=0.06
        )
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    check_accessibility(tab)


@pytest.mark.parametrize("size", [32, 47, 160])
def test_photos_become_the_pixels_that_pillow_makes_of_them(tab, photos, exported_charms, size):
    """The same to the bit: made larger, smaller and left as they are."""
    tab.goto("/")
    encoder = Classifier.load(exported_charms.folder).image_encoder
    encoder._size = size
    for path in [*photos[:2], *photos[-3:]]:
        content = base64.b64encode(path.read_bytes()).decode()
        found = np.frombuffer(base64.b64decode(tab.evaluate(PIXELS, [content, size])), np.uint8)
        expected = encoder.pixels(open_image(path))
        assert np.array_equal(found.reshape(expected.shape), expected), path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/?folder=nowhere/", "nowhere/classifier.json cannot be read"),
        ("/?folder=newer/", "version"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(tab, path, message):
    tab.goto(path)
    status = tab.locator("#status", has_text="The classifier cannot be loaded")
    assert re.search(message, status.inner_text())
    assert tab.locator("#files").is_hidden()


def test_the_page_shows_an_error_when_onnxruntime_web_cannot_be_loaded(tab):
    tab.context.route(CDN, lambda route: route.abort())
    tab.goto("/")
    tab.get_by_text("onnxruntime-web cannot be loaded").wait_for()


def test_the_browser_code_of_a_model_card_runs(tab, exported_charms, charm_world, tmp_path):
    """On a photo of the encoder's size, since a canvas resizes in another way."""
    (code,) = CARD_CODE.findall((exported_charms.folder / "README.md").read_text())
    path = tmp_path / "photo.png"
    Image.open(scan_split(charm_world, "seen").paths[0]).resize((32, 32)).save(path)
    content = base64.b64encode(path.read_bytes()).decode()
    tab.goto("/classifier/README.md")
    tab.evaluate(
        """async content => {
          window.photo = await (await fetch(`data:image/png;base64,${content}`)).blob();
        }""",
        content,
    )
    tab.add_script_tag(content=f"{code}\nwindow.found = [...features.data];", type="module")
    tab.wait_for_function("window.found !== undefined")
    expected = Classifier.load(exported_charms.folder).encode([path])[0]
    assert tab.evaluate("window.found") == pytest.approx(expected.tolist(), abs=1e-4)
