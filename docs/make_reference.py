"""Write the reference pages of the documentation from the code: `python docs/make_reference.py`.

They are written to docs/reference/, which git ignores, so that no page can differ from the code:

- configuration: the fields of `TrainConfig`, the presets
- settings: the environment variables of the service
- enrich, distill: the commands, by typer's own generator
- rest: routes and models, from the service's OpenAPI description
- python-*: names of modules, whose docstrings mkdocstrings renders
"""

import argparse
import json
import pkgutil
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from contract import TrainConfig
from enrich_service.app import create_app
from enrich_service.core.settings import Settings, environment_names

ROOT = Path(__file__).resolve().parents[1]
Schema = Mapping[str, Any]
PROGRAMS = {"enrich": "enrich_service.cli", "distill": "distill.cli.main"}
PYTHON_PAGES = {
    "python-distill": ("Python API: distill", ["distill.runtime", "distill.method"]),
    "python-client": ("Python API: enrich_service.client", ["enrich_service.client"]),
}
RANGES = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def configuration() -> str:
    """The fields of a training configuration and of its nested models, and the presets."""
    schema = TrainConfig.model_json_schema()
    parts = [
        "# Training configuration",
        "The same fields are in the TOML or JSON file of `distill train --config`, in the body of "
        "`POST /v1/jobs` under `config`, and in `report.json`. Unknown fields are refused.",
        fields(schema),
    ]
    for name, part in schema.get("$defs", {}).items():
        parts += [f"## {name}", part.get("description", ""), fields(part)]
    parts += [
        "## Presets",
        "`distill train --preset NAME` starts from these values; the configuration overrides them.",
    ]
    for path in sorted((ROOT / "distill" / "presets").glob("*.toml")):
        parts += [f"### {path.stem}", f"```toml\n{path.read_text(encoding='utf-8').strip()}\n```"]
    return page(parts)


def settings() -> str:
    """The environment variables of the service, with their defaults."""
    properties = Settings.model_json_schema(by_alias=False)["properties"]
    rows = []
    for name, schema in properties.items():
        variables = " or ".join(f"`{variable}`" for variable in environment_names(name))
        rows.append((variables, kind(schema), default(schema), schema.get("description", "")))
    return page(
        [
            "# Settings of the service",
            "Read from the environment when a command starts. `enrich settings` shows the values "
            "in force, with secrets masked. Where two variables are named, the first wins.",
            table(("variable", "type", "default", "meaning"), rows),
        ]
    )


def commands(program: str) -> str:
    """All commands of a program with their arguments and options."""
    command = loaded(typer.main.get_command(import_module(PROGRAMS[program]).app), program)
    context = typer.Context(command, info_name=program)
    return get_docs_for_click(obj=command, ctx=context, name=program).strip() + "\n"


def loaded(command: Any, name: str) -> Any:  # noqa: ANN401 - Typer does not export its type
    """The command with its subcommands loaded, which the CLI imports lazily."""
    command = command.load() if hasattr(command, "load") else command
    command.name = name
    for inner_name, inner in getattr(command, "commands", {}).items():
        command.commands[inner_name] = loaded(inner, inner_name)
    return command


def rest() -> str:
    """The routes by tag, and the models of their requests and responses."""
    document = create_app(Settings()).openapi()
    parts = [
        f"# REST reference\n\nVersion {document['info']['version']}. A running service shows the "
        "same at `/docs`, where requests can be sent, and serves the OpenAPI description at "
        "`/openapi.json`. A request is refused with an RFC 9457 problem document, whose `detail` "
        "describes what to do.",
    ]
    for tag in document["tags"]:
        parts.append(f"## {tag['name'].capitalize()}")
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation.get("tags", ()):
                    parts += route(method.upper(), path, operation)
    parts.append("## Models")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts += [f"### {name}", escape(schema.get("description", "")), fields(schema)]
    return page(parts)


def route(method: str, path: str, operation: Schema) -> list[str]:
    """One route: its description, parameters, request body and responses."""
    parts = [f"### {operation['summary']}", f"`{method} {path}`"]
    parts.append(escape(operation.get("description", "")))
    rows = [
        (
            f"`{parameter['name']}`",
            parameter["in"],
            kind(parameter["schema"]),
            default(parameter["schema"]) if not parameter.get("required") else "required",
            parameter.get("description", ""),
        )
        for parameter in operation.get("parameters", ())
    ]
    if rows:
        parts.append(table(("parameter", "in", "type", "default", "meaning"), rows))
    if body := operation.get("requestBody"):
        parts.append(f"Body: {content(body)}")
    answers = [
        f"{status} {content(answer)}"
        for status, answer in sorted(operation["responses"].items())
        if status.startswith(("2", "3"))
    ]
    return [*parts, f"Answer: {'; '.join(answers)}"]


def content(message: Schema) -> str:
    """The media types of a body with their models."""
    kinds = [
        f"{kind(body['schema'])} (`{media}`)" if body.get("schema") else f"`{media}`"
        for media, body in message.get("content", {}).items()
    ]
    return ", ".join(kinds) or "(empty)"


def python(title: str, modules: Iterable[str]) -> str:
    """Names of modules, and of the modules in a package, for mkdocstrings to render."""
    parts = [f"# {title}"]
    for name in modules:
        path = getattr(import_module(name), "__path__", ())
        submodules = [f"{name}.{module.name}" for module in pkgutil.iter_modules(path)]
        parts += [f"::: {module}" for module in submodules or [name]]
    return page(parts)


def fields(schema: Schema) -> str:
    """A table of the properties of an object; the values of an enumeration."""
    if "properties" not in schema:
        return kind(schema)
    required = schema.get("required", ())
    rows = [
        (
            f"`{name}`",
            kind(field),
            "required" if name in required else default(field),
            field.get("description", ""),
        )
        for name, field in schema["properties"].items()
    ]
    return table(("field", "type", "default", "meaning"), rows)


def kind(schema: Schema) -> str:
    """The type of a JSON schema in words: `integer ≥ 1`, a choice, a link to a model."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "allOf" in schema and len(schema["allOf"]) == 1:
        return kind(schema["allOf"][0])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(kind, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{value}`" for value in values)
    name = schema.get("format") or schema.get("type", "any")
    if schema.get("type") == "array":
        return f"array of {kind(schema.get('items', {}))}" if "items" in schema else "array"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {kind(schema['additionalProperties'])}"
    limits = [f"{sign} {schema[key]:,}" for key, sign in RANGES.items() if key in schema]
    return " ".join([str(name), ", ".join(limits)]).strip()


def default(schema: Schema) -> str:
    """The default of a field as JSON; a dash where there is none."""
    if schema.get("default") is None:
        return "–"
    value = schema["default"]
    if isinstance(value, dict) and value:
        return "its own defaults"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    cells = [list(head), *([escape(cell) for cell in row] for row in rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def escape(text: str) -> str:
    """The text on one line, with the characters escaped that would end a cell or begin a tag."""
    return " ".join(text.split()).replace("|", "&#124;").replace("<", "&lt;")


def page(parts: Iterable[str]) -> str:
    """The parts with a blank line between them."""
    return "\n\n".join(part for part in parts if part) + "\n"


def write(folder: Path) -> list[Path]:
    """Write all reference pages to `folder`, and return their paths."""
    pages = {"configuration": configuration(), "settings": settings(), "rest": rest()}
    pages |= {program: commands(program) for program in PROGRAMS}
    pages |= {name: python(title, modules) for name, (title, modules) in PYTHON_PAGES.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return [folder / f"{name}.md" for name in pages]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reference")
    for path in write(parser.parse_args().out):
        print(path)


if __name__ == "__main__":
    main()
