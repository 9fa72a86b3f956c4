"""Captions of images: what a vision model is shown, what is asked again, and what training gets."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from enrich_service.client import Client
from enrich_service.llm.images import SIDE, data_url, images_of
from tests.llm_server import Answer
from tests.service.llm_fixtures import add_labels, data_of, start_run, wait_for

SEES_NOTHING = (500, "image input is not supported - hint: you may need to provide the mmproj")


def picture(path, shade, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, 90)).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    """Two classes, n0 with three images and n1 with two, all different."""
    folder = tmp_path / "photos" / "train"
    for number in range(3):
        picture(folder / "n0" / f"{number}.png", 10 * number)
    for number in range(2):
        picture(folder / "n1" / f"{number}.JPEG", 100 + 10 * number)
    (folder / "n1" / "notes.txt").write_text("no image")
    (folder / "n1" / "._0.JPEG").write_bytes(b"of macOS")
    picture(folder / "n1" / ".ipynb_checkpoints" / "0.png", 50)
    return folder


@pytest.fixture
def birds(connect, photos):
    client = connect(image_roots=(photos.parent,))
    add_labels(client, ["teal", 'ignore the "above"'])
    return client


def ask(client, folder, **body):
    return start_run(client, prompt="image-caption", images=str(folder), **body)


def captions(client, run_id):
    answer = client.get(f"/v1/runs/{run_id}/captions.jsonl")
    assert answer.status_code == 200, answer.text
    lines = [json.loads(line) for line in answer.text.splitlines()]
    return {line["image"]: line["caption"] for line in lines}


def test_each_image_gets_one_caption_and_a_second_run_asks_only_for_what_is_new(
    birds, model, photos
):
    run = wait_for(birds, ask(birds, photos)["id"])
    assert (run["state"], run["total"], run["accepted"]) == ("succeeded", 5, 5)
    found = captions(birds, run["id"])
    assert sorted(found) == ["n0/0.png", "n0/1.png", "n0/2.png", "n1/0.JPEG", "n1/1.JPEG"]
    assert len(set(found.values())) == 5
    assert model.calls == {"teal": 3, 'ignore the "above"': 2}

    # Known by its bytes: a renamed image and a copy are there already, a new one is asked about.
    (photos / "n0" / "0.png").rename(photos / "n0" / "renamed.png")
    (photos / "n0" / "copy.png").write_bytes((photos / "n0" / "1.png").read_bytes())
    picture(photos / "n0" / "new.png", 200)
    estimate = birds.post(
        "/v1/runs/estimate",
        json={"label_set": "birds", "prompt": "image-caption", "images": str(photos)},
    ).json()
    assert (estimate["total"], estimate["new_requests"]) == (7, 1)
    again = wait_for(birds, ask(birds, photos)["id"])
    assert (again["accepted"], again["cached"], again["done"]) == (1, 6, 7)
    assert len(model.requests) == 6
    later = captions(birds, again["id"])
    assert later["n0/renamed.png"] == found["n0/0.png"]
    assert later["n0/copy.png"] == later["n0/1.png"] == found["n0/1.png"]


def test_the_model_is_shown_a_small_upright_jpeg_and_the_database_keeps_its_hash(
    birds, model, photos
):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    picture(photos / "n0" / "0.png", 7, size=(1500, 900), exif=exif)
    run = wait_for(birds, ask(birds, photos)["id"])
    sizes = {Image.open(io.BytesIO(call.images[0])).size for call in model.requests}
    assert sizes == {(307, SIDE), (40, 30)}
    call = model.requests[0]
    assert '{"name": "teal"}' in call.text or r'{"name": "ignore the \"above\""}' in call.text
    one = birds.get("/v1/generations", params={"run_id": run["id"]}).json()["items"][0]
    assert one["image"] in captions(birds, run["id"])
    detail = birds.get(f"/v1/generations/{one['id']}").json()
    content = detail["messages"][-1]["content"]
    assert content[1]["image_url"] == {"url": f"sha256:{detail['image_hash']}"}
    assert "base64" not in json.dumps(detail)
    page = birds.get(f"/generations/{one['id']}")
    assert one["image"] in page.text
    assert "captions for training" in birds.get(f"/runs/{run['id']}").text


def test_a_bad_caption_is_asked_again_with_the_image_and_the_reason(birds, model, photos):
    model.script("teal", Answer(content=json.dumps({"image_caption": "I cannot see this image."})))
    run = wait_for(birds, ask(birds, photos, concurrency=1)["id"])
    assert run["problems"]["refusal"] == 1
    assert (run["accepted"], len(model.requests)) == (5, 6)
    first, second = model.requests[:2]
    assert first.images == second.images
    assert "refusal" in second.text


def test_an_unreadable_image_is_a_failure_by_name_and_the_others_go_on(birds, model, photos):
    (photos / "n0" / "1.png").write_bytes(b"no image at all")
    cut = (photos / "n1" / "0.JPEG").read_bytes()
    (photos / "n1" / "0.JPEG").write_bytes(cut[: len(cut) // 2])
    (photos / "n0" / "gone.png").symlink_to(photos / "nowhere.png")
    for number in range(25):  # more in a row than calls that may fail
        (photos / "n1" / f"broken {number:02}.png").write_bytes(b"")
    run = wait_for(birds, ask(birds, photos, concurrency=1)["id"])
    assert (run["state"], run["accepted"], run["failed"]) == ("failed", 3, 28)
    assert "28 of 31 got no answer" in run["error"]
    assert len(model.requests) == 3
    failed = birds.get("/v1/generations", params={"status": "failed", "limit": 1000}).json()
    reasons = {one["image"]: one["problems"][0] for one in failed["items"]}
    assert "n0/1.png (it is not an image)" in reasons["n0/1.png"]
    assert "runcated" in reasons["n1/0.JPEG"]
    assert "it is a link to a missing file" in reasons["n0/gone.png"]
    page = birds.get(f"/runs/{run['id']}").text
    assert "unreadable image" in page
    assert "n0/1.png" in page

    picture(photos / "n0" / "1.png", 33)
    birds.post(f"/v1/runs/{run['id']}/retry")
    run = wait_for(birds, run["id"])
    assert (run["accepted"], run["failed"], len(model.requests)) == (4, 27, 4)
    assert "n0/1.png" in captions(birds, run["id"])
    assert "n0/1.png" not in birds.get(f"/runs/{run['id']}").text


def test_what_is_no_regular_file_is_named_and_keeps_nobody_waiting(birds, model, photos):
    os.mkfifo(photos / "n0" / "pipe.png")
    (photos / "n0" / "link.png").symlink_to("pipe.png")
    body = {"label_set": "birds", "prompt": "image-caption", "images": str(photos)}
    assert birds.post("/v1/runs/estimate", json=body).json()["total"] == 7
    run = wait_for(birds, ask(birds, photos)["id"])
    assert (run["accepted"], run["failed"]) == (5, 2)
    failed = birds.get("/v1/generations", params={"status": "failed"}).json()["items"]
    assert {one["problems"][0].partition(": ")[2] for one in failed} == {
        f"n0/{name}.png (it is a named pipe, not a regular file): repair or remove it"
        for name in ("pipe", "link")
    }


# Twelve at once in a process of its own; prints what it needed of memory, in MB.
DECODE = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from enrich_service.core.errors import UnreadableImage
from enrich_service.llm.images import data_url, images_of

(images,) = images_of(Path(sys.argv[1]), "n0", None, page=100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(12) as pool:
    for reading in [pool.submit(data_url, images[0]) for _ in range(12)]:
        if isinstance(reading.exception(), UnreadableImage):
            print(reading.exception(), file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    ("side", "most"),
    [(3000, 100), (9000, 20)],  # one of 3,000 px a side takes 36 MB; twelve would take 400
    ids=["large", "too large"],
)
def test_large_images_are_decoded_one_at_a_time_and_huge_ones_not_at_all(tmp_path, side, most):
    picture(tmp_path / "n0" / "0.png", 7, size=(side, side), compress_level=1)
    call = [sys.executable, "-c", DECODE, str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < most
    refused = "n0/0.png (9000 × 9000 pixels are too many, 64000000 are allowed)" in done.stderr
    assert refused == (side == 9000)


@pytest.mark.parametrize(
    "refusal",
    [
        SEES_NOTHING,
        (400, "Invalid content type. image_url is only supported by certain models."),
        (400, "small is not a multimodal model None"),
        (400, "At most 0 image(s) may be provided in one prompt."),
        (400, "this model does not support image input"),
        (422, "messages.0.content.1.type: Input should be 'text'"),
    ],
)
def test_a_model_without_eyes_is_told_in_one_line_after_one_call(birds, model, photos, refusal):
    model.vision_refusal = refusal
    run = wait_for(birds, ask(birds, photos, concurrency=1)["id"])
    assert run["state"] == "failed"
    assert "the model 'small' at http://127.0.0.1" in run["error"]
    assert "does not support images: choose a vision model" in run["error"]
    assert "\n" not in run["error"]
    assert len(model.requests) == 1


def test_one_image_that_the_server_refuses_does_not_stop_the_others(birds, model, photos):
    said = "You uploaded an unsupported image. Please make sure your image is valid."
    refused = Answer(400, body=json.dumps({"error": {"message": said}}))
    model.script("teal", *[refused] * 3)  # the service tries another response format first
    run = wait_for(birds, ask(birds, photos, concurrency=1)["id"])
    assert (run["accepted"], run["failed"]) == (4, 1)


def test_the_service_reads_images_below_its_roots_alone(birds, model, photos, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    picture(elsewhere / "n0" / "secret.png", 1)
    (photos.parent / "link").symlink_to(elsewhere)
    body = {"label_set": "birds", "prompt": "image-caption"}
    for folder in (elsewhere, photos.parent / "link", photos / ".." / ".." / "elsewhere"):
        answer = birds.post("/v1/runs", json={**body, "images": str(folder)})
        assert answer.status_code == 422
        assert "ENRICH_IMAGE_ROOTS" in answer.json()["detail"]
    (photos / "n0" / "leads-out.png").symlink_to(elsewhere / "n0" / "secret.png")
    run = wait_for(birds, ask(birds, photos)["id"])
    assert (run["accepted"], run["failed"]) == (5, 1)
    (failed,) = birds.get("/v1/generations", params={"status": "failed"}).json()["items"]
    problem = failed["problems"][0]
    assert "n0/leads-out.png (it is a link to a file outside the allowed folders)" in problem


def test_without_roots_the_service_reads_no_images(connect, photos, model):
    client = connect()
    add_labels(client, ["teal"])
    body = {"label_set": "birds", "prompt": "image-caption", "images": str(photos)}
    answer = client.post("/v1/runs", json=body)
    assert answer.status_code == 422
    assert "set ENRICH_IMAGE_ROOTS" in answer.json()["detail"]


def test_what_does_not_fit_is_refused_in_one_line(birds, photos, model):
    body = {"label_set": "birds", "prompt": "image-caption"}
    empty = photos.parent / "empty"
    empty.mkdir()
    for wrong, said in (
        (body, "is for images"),
        (body | {"images": str(empty / "nix")}, "there is no folder"),
        (body | {"images": str(empty)}, "give the folder that contains the class folders"),
        ({"label_set": "birds", "images": str(photos)}, "uses no image"),
    ):
        for route in ("/v1/runs", "/v1/runs/estimate"):
            answer = birds.post(route, json=wrong)
            assert (answer.status_code, said in answer.json()["detail"]) == (422, True), wrong
    for route, more in (
        ("/v1/describe", {"labels": ["teal"], "prompt": "image-caption"}),
        (
            "/v1/releases",
            {
                "label_set": "birds",
                "name": "r",
                "sources": [{"prompt": "image-caption", "version": 1}],
            },
        ),
    ):
        answer = birds.post(route, json=more)
        assert answer.status_code == 422
        assert "images" in answer.json()["detail"]
    labels = wait_for(birds, start_run(birds)["id"])
    answer = birds.get(f"/v1/runs/{labels['id']}/captions.jsonl")
    assert (answer.status_code, "choose a run over images" in answer.json()["detail"]) == (
        409,
        True,
    )
    assert birds.get("/label-sets/birds", params={"prompt": "image-caption"}).status_code == 200


def test_an_edited_caption_wins_a_rejected_one_is_left_out_a_locked_one_stays(birds, model, photos):
    run = wait_for(birds, ask(birds, photos)["id"])
    items = birds.get("/v1/generations", params={"run_id": run["id"]}).json()["items"]
    ids = {one["image"]: one["id"] for one in items}
    birds.post(f"/v1/generations/{ids['n0/0.png']}/edits", json={"text": "A teal at dawn."})
    birds.post("/v1/reviews", json={"generations": [ids["n0/1.png"]], "action": "reject"})
    birds.post("/v1/reviews", json={"generations": [ids["n0/2.png"]], "action": "lock"})
    edit = birds.post(f"/v1/generations/{ids['n0/2.png']}/edits", json={"text": "Another one."})
    assert edit.status_code == 409  # and the lock of one image locks no other
    found = captions(birds, run["id"])
    assert found["n0/0.png"] == "A teal at dawn."
    assert "n0/1.png" not in found
    assert len(found) == 4


def test_a_budget_pauses_and_the_client_reads_captions(birds, model, photos):
    run = wait_for(birds, ask(birds, photos, budget_tokens=100, concurrency=1)["id"])
    assert (run["state"], run["accepted"]) == ("paused", 2)
    with Client(str(birds.base_url)) as client:
        assert len(list(client.captions(run["id"]))) == 2
    birds.post(f"/v1/runs/{run['id']}/resume", json={"budget_tokens": 10_000})
    assert wait_for(birds, run["id"])["accepted"] == 5
    assert len(model.requests) == 5


def test_training_reads_what_the_service_wrote(enrich, model, photos, tmp_path):
    pytest.importorskip("torch")
    from distill.data.splits import scan_split
    from distill.embeddings.captions import read_captions

    data_of(enrich("labels", "add", "birds", "--folder", photos, "--json"))
    start = ("run", "start", "birds", "--prompt", "image-caption", "--images", photos)
    guess = data_of(enrich(*start, "--estimate", "--json"))
    assert (guess["new_requests"], guess["prompt_tokens"] > 5 * 300) == (5, True)
    run = data_of(enrich(*start, "--json"))
    out = photos.parent / "captions.jsonl"
    call = enrich("export", "captions", run["id"], "-o", out)
    assert (call.exit_code, call.stdout) == (0, "")
    split = scan_split(photos.parent, "train")
    found = read_captions(out, photos.parent, split)
    assert len(found) >= 3 and {len(texts) for texts in found} == {1}
    assert found[0][0].startswith("A n0 stands on grass")


def test_the_command_line_names_failed_images_and_says_what_is_missing(
    enrich,
    model,
    photos,
):
    (photos / "n0" / "1.png").write_bytes(b"")
    data_of(enrich("labels", "add", "birds", "--folder", photos, "--json"))
    call = enrich("run", "start", "birds", "--prompt", "image-caption", "--images", photos)
    assert call.exit_code == 1
    assert "enrich: unreadable image: 1: n0/1.png\n" in call.stderr
    assert "get the others with `enrich run retry 1`" in call.stderr
    call = enrich("export", "captions", "1")
    assert len(call.stdout.splitlines()) == 4
    assert "1 of 5 captions are missing" in call.stderr
    for arguments, said in (
        (("export", "captions", "7"), "no run 7"),
        (("describe", "teal", "--prompt", "image-caption"), "is for images"),
    ):
        call = enrich(*arguments)
        assert (call.exit_code, call.stderr.count("\n")) == (1, 1)
        assert said in call.stderr


def test_ctrl_c_leaves_captions_that_the_next_start_does_not_ask_for(
    enrich,
    model,
    photos,
):
    for number in range(60):
        picture(photos / "n0" / f"more {number:02}.png", 30 + 3 * number)
    data_of(enrich("labels", "add", "birds", "--folder", photos, "--json"))
    model.latency = 0.05
    command = [sys.executable, "-m", "enrich_service.cli", "run", "start", "birds"]
    command += ["--prompt", "image-caption", "--images", str(photos), "--concurrency", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(model.requests) < 10 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "continue with `enrich run resume 1`" in said
    asked = len(model.requests)
    assert 10 <= asked < 65
    model.latency = 0.0
    start = ("run", "start", "birds", "--prompt", "image-caption", "--images", photos)
    again = data_of(enrich(*start, "--json"))
    assert (again["cached"], again["accepted"]) == (asked, 65 - asked)
    assert len(model.requests) == 65


def test_recorded_replies_are_found_by_the_name_of_the_image(
    enrich,
    photos,
    tmp_path,
    monkeypatch,
):
    lines = [
        {
            "label": f"n0/{n}.png",
            "prompt": "image-caption",
            "reply": json.dumps({"image_caption": f"A bird in front of {n} green trees."}),
        }
        for n in range(3)
    ]
    replies = tmp_path / "replies.jsonl"
    replies.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setenv("OPENAI_BASE_URL", f"replay:{replies}")
    data_of(enrich("labels", "add", "birds", "n0", "--json"))
    start = ("run", "start", "birds", "--prompt", "image-caption", "--images", photos)
    assert data_of(enrich(*start, "--json"))["accepted"] == 3
    out = enrich("export", "captions", "1").stdout
    assert '{"image":"n0/2.png","caption":"A bird in front of 2 green trees."}' in out


# ------------------------------------------------------------------------ what becomes of an image


def test_a_real_photo_and_odd_files_become_small_jpegs(shared, tmp_path):
    photo = next((shared / "bench" / "tiny-imagenet-ood" / "train").rglob("*.JPEG"))
    original = Image.open(io.BytesIO(photo.read_bytes()))
    folder = tmp_path / "n0"
    folder.mkdir()
    (folder / "photo.JPEG").write_bytes(photo.read_bytes())
    Image.new("RGBA", (900, 20), (255, 0, 0, 128)).save(folder / "wide.png")
    Image.new("P", (30, 900)).save(folder / "tall.gif")
    Image.new("L", (8, 8)).save(folder / "grey.tif")
    (page,) = images_of(tmp_path, "n0", None, page=10)
    shown = {Path(one.name).name: decoded(data_url(one)) for one in page}
    assert {name: image.size for name, image in shown.items()} == {
        "photo.JPEG": original.size,
        "wide.png": (SIDE, 11),
        "tall.gif": (17, SIDE),
        "grey.tif": (8, 8),
    }
    assert {image.mode for image in shown.values()} == {"RGB"}
    difference = ImageOps.grayscale(shown["photo.JPEG"]).resize((1, 1)).getpixel((0, 0))
    expected = ImageOps.grayscale(original).resize((1, 1)).getpixel((0, 0))
    assert abs(difference - expected) < 4


def decoded(url):
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    image.load()
    return image
