"""Settings: a dataclass, a YAML file that fills it, a command line that overrides single fields.

`load_config(Settings, argv, default="sft_cot_tiny")` is all a recipe needs. Every field has one
type and one name; a misspelt name or a value of another type is an error, never ignored.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from vlmface import resources
from vlmface.errors import UserError, did_you_mean
from vlmface.resources import resource
from vlmface.utils import distributed
from vlmface.utils.files import atomic_write
from vlmface.utils.ranges import (
    Checked,
    Describes,
    alternatives,
    bare,
    describe,
    help_texts,
    in_range,
    kinds,
)

T = TypeVar("T")
SETTINGS = "settings.json"  # in the folder of a run


def load_config(cls: type[T], argv: Sequence[str], *, default: str, usage: str) -> T:
    """Read `--config FILE.yaml` (or `default`, a name in recipes/configs), then `--field value`.

    `--field=value` works too, and a bare `--field` sets a bool field to true. `--help` prints the
    fields with the values that would be used and raises SystemExit(0). Raises UserError that names
    the field, the value found and what is allowed.
    """
    wants_help = any(word in ("-h", "--help") for word in argv)
    overrides = split_args(cls, [word for word in argv if word not in ("-h", "--help")])
    file = find_config(str(overrides.pop("config", default)))
    stored = _still_true(cls, read_yaml(file), overrides)
    implied = cls.implied(stored, overrides) if issubclass(cls, Checked) else {}
    changed = {name for name, value in implied.items() if value != stored.get(name)}
    stored |= implied
    settings = from_dict(cls, {**stored, **overrides}, where=f"{file.name} or the command line")
    if wants_help:
        print(f"{usage}\n\nSettings, with the values that would be used now ({file}):")
        values = {name: f" {getattr(settings, name)!r}" for name in kinds(cls)}
        print(describe_fields(cls, values))
        raise SystemExit(0)
    refuse_unused(settings, overrides, changed)
    return settings


def read_field(name: str, argv: Sequence[str], *, default: str) -> Any:
    """The value of one field, before it is known which settings there are.

    It comes from the command line or else from the file; None if neither names it.

    Raises:
        UserError: The file cannot be read.
    """

    @dataclasses.dataclass
    class Unknown:
        config: str

    overrides = split_args(Unknown, [word for word in argv if word not in ("-h", "--help")])
    return overrides.get(
        name, read_yaml(find_config(str(overrides.get("config", default)))).get(name)
    )


def parse_args(cls: type[T], argv: Sequence[str], *, usage: str) -> T:
    """`--field value` alone, for commands without a settings file; `--help` as in `load_config`."""
    if any(word in ("-h", "--help") for word in argv):
        defaults = {name: f" {value!r}" for name, value in default_values(cls).items()}
        print(f"{usage}\n\nSettings, with their defaults:\n{describe_fields(cls, defaults)}")
        raise SystemExit(0)
    overrides = split_args(cls, argv)
    settings = from_dict(cls, dict(overrides), where="the command line")
    refuse_unused(settings, overrides)
    return settings


def describe_fields(cls: Any, values: Mapping[str, str]) -> str:
    """For `--help`: each field of settings with a value, its meaning, type and range.

    Args:
        cls: The settings.
        values: {field: text behind its name}; fields without one are required.
    """
    texts = help_texts(cls)
    lines = []
    for name, kind in kinds(cls).items():
        lines.append(f"  --{name}{values.get(name, '  (required)')}")
        lines.append(f"      {texts[name]} ({describe(kind)})".replace("  (", " ("))
    return "\n".join(lines)


def comment(cls: Any, name: str) -> str:
    """The comment on a field in the files of recipes/configs: its meaning, and the words that it
    may be, if the meaning does not contain them."""
    words = [
        str(word)
        for kind in alternatives(kinds(cls)[name])
        if typing.get_origin(bare(kind)[0]) is typing.Literal
        for word in typing.get_args(bare(kind)[0])
    ]
    text = help_texts(cls)[name]
    mentioned = re.findall(r"\w+", text)
    return text if set(words) <= set(mentioned) else f"{text} ({' | '.join(words)})"


def default_values(cls: Any) -> dict[str, Any]:
    """{field: default} of a dataclass, without the fields that have none."""
    values = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
    return values


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose options are declared as `--dash-case`; `--snake_case` also works."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, after writing the names of options with dashes."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._with_dashes(word) for word in words], namespace)

    def _with_dashes(self, word: str) -> str:
        """`--max_words=9` as `--max-words=9`; keys behind a dot (`--x.a_b`), values and names of no
        option, which messages repeat, are kept."""
        match = re.match(r"--\w[\w-]*", word)
        if match is None:
            return word
        name = match[0].replace("_", "-")
        is_option = any(option.startswith(name) for option in self._option_string_actions)
        return name + word[match.end() :] if is_option else word


def option(parser: Any, flag: str, kind: Any, *, help: str = "", **keywords: Any) -> None:
    """Add an option to a parser of argparse; its help ends with type, range and default.

    Args:
        parser: To add to.
        flag: Such as "--batch-size".
        kind: The type, with its range; parsing raises UserError for another value.
        help: The meaning.
        keywords: Further ones of `add_argument`.
    """
    name = flag.removeprefix("--").replace("-", "_")
    allowed = describe(kind)
    if (default := keywords.get("default")) is not None:
        allowed += f"; default {default}"
    text = f"{help} ({allowed})".strip()
    parser.add_argument(flag, type=lambda word: convert(name, kind, word), help=text, **keywords)


def split_args(cls: type, argv: Sequence[str]) -> dict[str, str]:
    """{field: text} of `--field value`, `--field=value` and bare `--flag`. Raises UserError."""
    field_types, overrides, remaining = kinds(cls), {}, list(argv)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}: settings are written --field value")
        name, equals, text = word[2:].partition("=")
        name = name.replace("-", "_")
        choices = [bare(kind)[0] for kind in alternatives(field_types.get(name))]
        if any(typing.get_origin(kind) is dict for kind in choices):
            overrides[name] = _pairs(name, ([text] if equals else []) + _values(remaining))
            continue
        if not equals:
            is_flag = not remaining or remaining[0].startswith("--")
            text = "true" if is_flag else remaining.pop(0)
            if is_flag and name in field_types and bool not in choices:
                raise UserError(f"--{name} needs a value")
        overrides[name] = text
    return overrides


def _values(remaining: list[str]) -> list[str]:
    """The words up to the next option, taken out of `remaining`."""
    end = next((i for i, word in enumerate(remaining) if word.startswith("--")), len(remaining))
    values, remaining[:end] = remaining[:end], []
    return values


def _pairs(name: str, texts: Sequence[str]) -> str:
    """A mapping as YAML: as it is given, or as NAME=VALUE words."""
    if len(texts) == 1 and not re.match(r"\s*\w+=", texts[0]):
        return texts[0]
    return json.dumps(fields(name, texts))


def fields(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """{"temperature": 0} of ["temperature=0"]; values are read as YAML. Raises UserError."""
    if not texts:
        raise UserError(f"--{name} needs a value, such as NAME=VALUE")
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--{name} {text!r} is not NAME=VALUE")
        try:
            pairs[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--{name} {key}: cannot read {value!r} ({error})") from error
    return pairs


def run_main(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a script's `main` on the command line: a UserError is one line on stderr and exit code 2,
    an interruption exit code 130. Several processes end together."""
    distributed.run_command(
        lambda: main(sys.argv[1:]), "interrupted; run the same command again to resume"
    )


def find_config(name: str) -> Path:
    """The YAML file `name`: a path, or the name of a file in recipes/configs."""
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix not in (".yaml", ".yml") and path.name == name:
        path = path.with_suffix(".yaml")
    folder = resource("recipes/configs")
    if (folder / path).is_file():
        return folder / path
    config_names = sorted(file.stem for file in folder.glob("*.yaml"))
    raise UserError(
        f"there is no settings file {name!r}{did_you_mean(path.stem, config_names)}: "
        f"give the path of a YAML file, or one of {', '.join(config_names)}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError for anything else, and for a repeated key."""
    return resources.read_yaml(path, "the settings")


def from_dict(cls: type[T], values: dict[str, Any], *, where: str) -> T:
    """Make `cls` from `values`, each converted to its field's type and within its range; `Checked`
    settings must also agree with each other. Raises UserError."""
    fields = kinds(cls)
    for name in values:
        if name not in fields:
            raise UserError(
                f"there is no setting {name!r}{did_you_mean(str(name), fields)} (in {where}); "
                f"settings: {', '.join(fields)}"
            )
    if missing := set(fields) - set(default_values(cls)) - set(values):
        raise UserError(f"{where} lacks {', '.join(sorted(missing))}: add it")
    settings = cls(**{name: convert(name, fields[name], value) for name, value in values.items()})
    if isinstance(settings, Checked):
        settings.check()
    return settings


def refuse_unused(
    settings: Any, overrides: Collection[str] | None = None, implied: Collection[str] = ()
) -> None:
    """Refuse fields of `Checked` settings that differ from their default and have no effect.

    Args:
        settings: The settings.
        overrides: The fields of the command line; None: all.
        implied: Fields whose value in the settings file gave way, see `Checked.implied`.

    Raises:
        UserError: There is such a field. What a settings file says of an option that the command
            line has switched off, or an implied value, may stay, and is printed.
    """
    if not isinstance(settings, Checked):
        return
    defaults = default_values(type(settings))
    for name, why, by in settings.unused():
        value, default = getattr(settings, name), defaults.get(name)
        if name in defaults and value == default:
            continue
        text = f"{name} is {value!r}, but has no effect: {why}"
        of_file = overrides is not None and name not in overrides
        if of_file and by is None:
            continue
        if of_file and set(by or ()) & {*(overrides or ()), *implied}:
            if os.environ.get("RANK", "0") == "0":
                print(f"note: {text}")
            continue
        raise UserError(f"{text}. Leave it out, or set it to {_as_yaml(default)}")


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _still_true(cls: type, stored: dict[str, Any], overrides: dict[str, str]) -> dict[str, Any]:
    """What a settings file says, without texts about a field that the command line changes."""
    about = {
        name: extra.field
        for name, kind in kinds(cls).items()
        for extra in bare(kind)[1]
        if isinstance(extra, Describes)
    }
    return {
        name: value
        for name, value in stored.items()
        if name not in about
        or about[name] not in overrides
        or overrides[about[name]] == str(stored.get(about[name]))
    }


def save_config(settings: Any, folder: Path) -> None:
    """Write `settings` as settings.json into `folder`."""
    atomic_write(folder / SETTINGS, json.dumps(dataclasses.asdict(settings), indent=2) + "\n")


def read_saved_config(folder: Path) -> dict[str, Any]:
    """The settings.json in `folder`. Raises UserError."""
    path = folder / SETTINGS
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path} ({error}): use another --output_dir") from error


def check_config(settings: Any, folder: Path, ignore: Sequence[str] = ()) -> None:
    """Check `settings` against the settings.json in `folder`; fields in `ignore` may differ.

    Resuming with other settings would mix two runs: UserError names the setting and both values.
    """
    before = read_saved_config(folder)
    now = dataclasses.asdict(settings)
    for name in {**before, **now}:
        if name not in ignore and before.get(name) != now.get(name):
            raise UserError(
                f"{folder} was started with {name} = {before.get(name)!r}, but now {name} = "
                f"{now.get(name)!r}: use another --output_dir, the old setting, or --overwrite"
            )


def convert(name: str, kind: Any, value: Any) -> Any:
    """A YAML value or a word of the command line as `kind`; text is read as YAML first. Raises
    UserError that names the value and what is allowed."""
    options = [bare(alternative)[0] for alternative in alternatives(kind)]
    parsed = value
    if isinstance(value, str) and str not in options:
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):  # a date such as 2024-13-01 is a ValueError
            parsed = value
    elif isinstance(value, str) and value in ("null", "none", "None") and type(None) in options:
        parsed = None
    value_text = repr(value)
    for choice in alternatives(kind):
        converted = _as_option(name, bare(choice)[0], value, parsed)
        if converted is _NOT:
            continue
        if in_range(choice, converted):
            return converted
        value_text = str(value)  # a number, written as text or not
    raise UserError(f"{name} is {value_text}, but must be {describe(kind)}")


_NOT = object()  # the value is not of that type


def _as_option(name: str, kind: Any, value: Any, parsed: Any) -> Any:
    """`value`, `parsed` as YAML, as one type without alternatives; _NOT if it is not of it."""
    origin = typing.get_origin(kind)
    if kind is type(None):
        return None if parsed is None else _NOT
    if origin is typing.Literal:
        options = typing.get_args(kind)
        return next((o for o in options if type(o) is type(parsed) and o == parsed), _NOT)
    if origin is dict:
        item_kind = typing.get_args(kind)[1]
        if not isinstance(parsed, dict):
            return _NOT
        if item_kind is Any:
            return parsed
        return {key: convert(f"{name}.{key}", item_kind, item) for key, item in parsed.items()}
    if origin is list:
        (item_kind,) = typing.get_args(kind)
        if typing.get_origin(item_kind) is dict and isinstance(parsed, dict):
            raise UserError(
                f"{name} is one mapping, but must be a list of them: write [{_as_yaml(parsed)}]"
            )
        items = value
        if isinstance(value, str):  # mappings hold commas of their own
            items = parsed if typing.get_origin(item_kind) is dict else value.split(",")
        if not isinstance(items, list):
            return _NOT
        words = [item.strip(" []") if isinstance(item, str) else item for item in items]
        return [convert(name, item_kind, word) for word in words if word != "" or value != "[]"]
    if kind is float:
        return _as_float(parsed)
    return parsed if type(parsed) is kind else _NOT


def _as_float(parsed: Any) -> Any:
    # YAML reads 5e-4 as text: only 5.0e-4 is a number to it.
    if isinstance(parsed, bool) or not isinstance(parsed, int | float | str):
        return _NOT
    try:
        return float(parsed)
    except (ValueError, OverflowError):
        return _NOT
