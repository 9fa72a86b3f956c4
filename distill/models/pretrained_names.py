"""Prints open_clip's pretrained models by repository on the Hugging Face Hub, as JSON.

`python -m distill.models.pretrained_names` is run as a subprocess by processes that must not load
torch.
"""

import json

import open_clip


def names_by_repository() -> dict[str, list[str]]:
    """ORGANISATION/NAME → names such as ViT-B-32@laion2b_s34b_b79k."""
    names: dict[str, list[str]] = {}
    for model, tag in open_clip.list_pretrained():
        hub = open_clip.get_pretrained_cfg(model, tag).get("hf_hub") or ""
        repository, _, _file = hub.rpartition("/")
        if repository:
            names.setdefault(repository, []).append(f"{model}@{tag}")
    return names


if __name__ == "__main__":
    print(json.dumps(names_by_repository()))  # noqa: T201
