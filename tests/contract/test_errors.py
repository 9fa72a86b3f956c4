import pytest
from pydantic import BaseModel, ValidationError, model_validator

from contract import first_error_line


class Part(BaseModel):
    size: int


class Document(BaseModel):
    parts: dict[str, Part]

    @model_validator(mode="after")
    def _has_parts(self):
        if not self.parts:
            raise ValueError("add a part")
        return self


@pytest.mark.parametrize(
    ("parts", "name", "line"),
    [
        ({"a": {"size": 1}, "b": {}}, "document", "parts.b.size: Field required"),
        ({}, "job.json", "job.json: add a part"),
        ({}, "", "add a part"),
        ({"a\nb": {}}, "", r"parts.'a\nb'.size: Field required"),
    ],
)
def test_the_first_validation_error_is_one_line_with_its_location(parts, name, line):
    with pytest.raises(ValidationError) as error:
        Document.model_validate({"parts": parts})
    assert first_error_line(error.value, name) == line


def test_a_long_key_is_shortened():
    with pytest.raises(ValidationError) as error:
        Document.model_validate({"parts": {"k" * 10_000: {}}})
    assert len(first_error_line(error.value)) < 120
