"""Index of accepted texts by label, so that no two labels share a text."""

from collections.abc import Iterator, Mapping, Sequence

from enrich_service.validation.similarity import accepted_keys, normalise, text_keys


class AcceptedTextIndex:
    """Accepted texts of other labels, so that no two labels share a text.

    Grows with the accepted answers of one prompt version; lookups are by key. An answer that this
    process has accepted is `reserved` until it is stored, and `added` afterwards: if two processes
    accept one text at once, the database decides which label gets it.
    """

    def __init__(self) -> None:
        self._stored: dict[str, str] = {}  # label by key
        self._reserved: dict[str, str] = {}

    def reserve(self, label: str, kind: str, texts: Sequence[str]) -> None:
        """Reserve the texts of an accepted answer that is not stored yet."""
        for key in accepted_keys(label, kind, texts):
            self._reserved.setdefault(key, label)

    def add(self, label: str, kind: str, texts: Sequence[str]) -> None:
        """Add the texts of a stored answer."""
        for key in accepted_keys(label, kind, texts):
            self._stored.setdefault(key, label)
            self._reserved.pop(key, None)

    def stored_for_another(self, label: str, kind: str, texts: Sequence[str]) -> bool:
        """Whether one of the texts is stored as the text of another label."""
        others = _Others((self._stored,), label)
        return any(key in others for key in text_keys(kind, texts))

    def by_others_than(self, label: str) -> Mapping[str, str]:
        """The keys of other labels' texts (see `similarity.accepted_keys`)."""
        return _Others((self._stored, self._reserved), label)


class _Others(Mapping[str, str]):
    """A view without the label's own texts: "grey_fox" and "grey fox" are one label."""

    def __init__(self, owners: Sequence[Mapping[str, str]], label: str) -> None:
        self._owners, self._own = owners, normalise(label)

    def __getitem__(self, key: str) -> str:
        owner = next((labels[key] for labels in self._owners if key in labels), None)
        if owner is None or normalise(owner) == self._own:
            raise KeyError(key)
        return owner

    def __iter__(self) -> Iterator[str]:
        return (key for key in {key for labels in self._owners for key in labels} if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
