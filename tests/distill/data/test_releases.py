import pytest

from distill.data.releases import read_release, release_from_pairs
from distill.errors import TextError
from tests.distill.conftest import make_release


def test_a_release_survives_its_file(tmp_path):
    release = make_release({"n1": "fox"}, {"n1": "It is red."})
    (tmp_path / "r.json").write_text(release.model_dump_json())
    assert read_release(tmp_path / "r.json") == release


def test_a_release_changed_by_hand_is_refused(tmp_path):
    text = make_release({"n1": "fox"}, {"n1": "It is red."}).model_dump_json()
    (tmp_path / "r.json").write_text(text.replace("red", "blue"))
    with pytest.raises(TextError, match="do not match its hash"):
        read_release(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot read the release"), ("{}", "is not a release"), ("{", "is not a release")],
)
def test_a_file_that_is_no_release_is_named(tmp_path, content, said):
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    with pytest.raises(TextError, match=said):
        read_release(tmp_path / "r.json")


def test_the_papers_pair_becomes_a_release(tmp_path):
    (tmp_path / "label2text.txt").write_text("n1 1 red_fox\nn2 2 frog\n")
    (tmp_path / "chatgpt.txt").write_text("The red fox has rusty fur.\n\n")
    release = release_from_pairs(tmp_path / "label2text.txt", tmp_path / "chatgpt.txt")
    assert [(x.key, x.name, x.description) for x in release.labels] == [
        ("n1", "red fox", "The red fox has rusty fur."),
        ("n2", "frog", None),
    ]


@pytest.mark.parametrize(
    ("labels", "texts", "said"),
    [
        ("n1 fox\n", None, "line 1: expected 'KEY INDEX NAME'"),
        ("n1 1 fox\nn1 2 dog\n", None, "lists a key twice"),
        ("n1 1 fox\n", "a\nb\n", "has 1 labels and .* has 2 lines"),
    ],
)
def test_a_malformed_pair_is_named(tmp_path, labels, texts, said):
    (tmp_path / "l.txt").write_text(labels)
    if texts:
        (tmp_path / "t.txt").write_text(texts)
    with pytest.raises(TextError, match=said):
        release_from_pairs(tmp_path / "l.txt", tmp_path / "t.txt" if texts else None)
