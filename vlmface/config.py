"""Settings: a dataclass, a YAML file that fills it, a command line that overrides single fields.

`parse(Settings, argv, default="sft_cot_tiny")` is all a recipe needs. Every field has one type and
one name; a misspelt name or a value of another type is an error, never ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import shutil
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from vlmface.errors import UserError
from vlmface.files import atomic_write, resource
from vlmface.terminal import one_line

T = TypeVar("T")


def parse(cls: type[T], argv: Sequence[str], *, default: str, usage: str) -> T:
    """Read `--config FILE.yaml` (or `default`, a name in recipes/configs), then `--field value`.

    `--field=value` works too, and a bare `--field` sets a bool field to true. `--help` prints the
    fields with the values that would be used and raises SystemExit(0). Raises UserError that names
    the field, the value found and what is allowed.
    """
    wants_help = any(word in ("-h", "--help") for word in argv)
    given = words(cls, [word for word in argv if word not in ("-h", "--help")])
    file = find(str(given.pop("config", default)))
    settings = build(cls, {**read(file), **given}, where=f"{file.name} or the command line")
    if wants_help:
        print(f"{usage}\n\nSettings, with the values that would be used now ({file}):")
        for field in dataclasses.fields(typing.cast(Any, cls)):
            print(f"  --{field.name} {getattr(settings, field.name)!r}")
        raise SystemExit(0)
    return settings


def peek(name: str, argv: Sequence[str], *, default: str) -> Any:
    """What `parse` would find for one field, before it is known which settings there are: a word
    of the command line, or what the file says; None if neither names it. Raises UserError."""

    @dataclasses.dataclass
    class Unknown:
        config: str

    given = words(Unknown, [word for word in argv if word not in ("-h", "--help")])
    return given.get(name, read(find(str(given.get("config", default)))).get(name))


def from_words(cls: type[T], argv: Sequence[str], *, usage: str) -> T:
    """`--field value` alone, for commands without a settings file; `--help` as in `parse`."""
    if any(word in ("-h", "--help") for word in argv):
        print(f"{usage}\n\nfields: " + ", ".join(_types(cls)))
        raise SystemExit(0)
    return build(cls, dict(words(cls, argv)), where="the command line")


def words(cls: type, argv: Sequence[str]) -> dict[str, str]:
    """{field: text} of `--field value`, `--field=value` and bare `--flag`. Raises UserError."""
    kinds, given, rest = _types(cls), {}, list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}: settings are written --field value")
        name, equals, text = word[2:].partition("=")
        name = name.replace("-", "_")
        if not equals:
            is_flag = not rest or rest[0].startswith("--")
            text = "true" if is_flag else rest.pop(0)
            if is_flag and name in kinds and bool not in _alternatives(kinds[name]):
                raise UserError(f"--{name} needs a value")
        given[name] = text
    return given


def command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a script's `main` on the command line: a UserError is one line on stderr and exit code 2,
    an interruption exit code 130."""
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        code = 130
    sys.exit(code)


def find(name: str) -> Path:
    """The YAML file `name`: a path, or the name of a file in recipes/configs."""
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix not in (".yaml", ".yml") and path.name == name:
        path = path.with_suffix(".yaml")
    folder = resource("recipes/configs")
    if (folder / path).is_file():
        return folder / path
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    raise UserError(
        f"there is no settings file {name!r}{_hint(path.stem, known)}: give the path of a YAML "
        f"file, or one of {', '.join(known)}"
    )


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError for anything else, and for a repeated key."""

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """PyYAML keeps the last of two equal keys silently. Its own parser takes minutes over deep
        nesting, libyaml's does not."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        if repeated := {key for key in keys if keys.count(key) > 1}:
            raise UserError(f"{path} sets {', '.join(map(repr, repeated))} twice: keep one")
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read the settings {path}: it is not a regular file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the settings {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a list of `field: value` lines")
    return content


def build(cls: type[T], values: dict[str, Any], *, where: str) -> T:
    """Make `cls` from `values`, each converted to its field's type. Raises UserError."""
    kinds = _types(cls)
    for name in values:
        if name not in kinds:
            raise UserError(
                f"there is no setting {name!r}{_hint(name, kinds)} (in {where}); "
                f"settings: {', '.join(kinds)}"
            )
    required = {
        f.name
        for f in dataclasses.fields(typing.cast(Any, cls))
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := required - set(values):
        raise UserError(f"{where} lacks {', '.join(sorted(missing))}: add it")
    return cls(**{name: _convert(name, kinds[name], value) for name, value in values.items()})


def remember(settings: Any, run_dir: Path, *, free: Sequence[str] = (), anew: bool = False) -> None:
    """Keep `settings` as settings.json in `run_dir`; if they are there already, they must agree.

    A run that goes on with other settings would be neither the old nor the new one: UserError
    names the setting and both values. Fields in `free` may differ. `anew` deletes the old run
    first, but no folder that is something else.
    """
    path = run_dir / "settings.json"
    if anew and run_dir.exists():
        if not path.exists() and any(run_dir.iterdir()):
            raise UserError(
                f"{run_dir} holds other files than a run (no settings.json): it will not be "
                "deleted, use another --output_dir"
            )
        shutil.rmtree(run_dir)
    now = dataclasses.asdict(settings)
    if not path.exists():
        atomic_write(path, json.dumps(now, indent=2) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name in {**before, **now}:
        if name not in free and before.get(name) != now.get(name):
            raise UserError(
                f"{run_dir} was started with {name} = {before.get(name)!r}, but now {name} = "
                f"{now.get(name)!r}: use another --output_dir, the old setting, or --overwrite"
            )


def _types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(typing.cast(Any, cls))}


def _alternatives(kind: Any) -> tuple[Any, ...]:
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if union else (kind,)


def _convert(name: str, kind: Any, value: Any) -> Any:
    """A YAML value or a word of the command line as `kind`; text is read as YAML first."""
    kinds = _alternatives(kind)
    parsed = value
    if isinstance(value, str) and str not in kinds:
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = value
    elif isinstance(value, str) and value in ("null", "none", "None") and type(None) in kinds:
        parsed = None
    for one in kinds:
        if one is type(None):
            if parsed is None:
                return None
        elif typing.get_origin(one) is typing.Literal:
            if parsed in typing.get_args(one):
                return parsed
        elif typing.get_origin(one) is dict:
            if isinstance(parsed, dict):
                return parsed
        elif typing.get_origin(one) is list:
            (of,) = typing.get_args(one)
            items = value
            if isinstance(value, str):  # mappings hold commas of their own
                items = parsed if typing.get_origin(of) is dict else value.split(",")
            if isinstance(items, list):
                words = [item.strip(" []") if isinstance(item, str) else item for item in items]
                return [_convert(name, of, word) for word in words]
        elif one is float:
            # YAML reads 5e-4 as text: only 5.0e-4 is a number to it.
            if isinstance(parsed, int | float) and not isinstance(parsed, bool):
                return float(parsed)
            if isinstance(parsed, str):
                try:
                    return float(parsed)
                except ValueError:
                    pass
        elif type(parsed) is one:
            return parsed
    raise UserError(f"{name} is {value!r}, but must be {_describe(kind)}")


def _describe(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    parts = []
    for one in _alternatives(kind):
        if typing.get_origin(one) is typing.Literal:
            parts.append(" | ".join(map(str, typing.get_args(one))))
        elif typing.get_origin(one) in (list, dict):
            parts.append("a list" if typing.get_origin(one) is list else "a mapping")
        else:
            parts.append("null" if one is type(None) else words[one])
    return " or ".join(parts)


def _hint(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
