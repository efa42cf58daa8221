"""Plain English: phrases that must not come back, and the length of lines in Markdown.

The phrases are a thermometer. A sentence without them can still be hard to understand.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MARKDOWN = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("vlmface/assets/*/README.md")),
]
YAML = [
    file
    for folder in ("prompts", "recipes", "eval")
    for file in sorted((ROOT / folder).rglob("*.yaml"))
]
PYTHON = [
    file
    for folder in ("vlmface", "recipes", "eval", "app")
    for file in sorted((ROOT / folder).rglob("*.py"))
]
WIDTH = 100

# "X is no Y" for "X is not a Y". Allowed: "there is no Y" and comparisons ("is no longer", "is no
# more than").
IS_NO = r"(?<!\bthere )\b(?:is|are|was|were) no\b(?! (?:longer|more|less|fewer)\b)"
BANNED = re.compile(
    rf"{IS_NO}|\bknows? no\b|\bgo(?:es)? on\b|\banew\b|\bbegun\b|\bwhoever\b|\bnobody\b|\banybody\b"
    r"|\bof equals\b|\bonce more\b|\btelephones?\b",
    re.I,
)


def hits(text: str) -> list[str]:
    """The banned phrases of a text, each with what surrounds it."""
    plain = " ".join(text.split())
    return [plain[max(0, m.start() - 40) : m.end() + 40] for m in BANNED.finditer(plain)]


# --- where prose is -----------------------------------------------------------------------------


def yaml_comments(text: str) -> str:
    return "\n".join(re.findall(r"(?:^|\s)#(.*)$", text, re.M))


def python_prose(source: str) -> Iterator[str]:
    """Docstrings, string literals and comments. Comments on consecutive lines are one text, and so
    are the parts of an f-string. Literals of one word are data, not prose."""
    parts: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            constants = [part for part in node.values if isinstance(part, ast.Constant)]
            parts |= {id(part) for part in constants}
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in parts
            and " " in node.value.strip()
        ):
            yield node.value
    comment, last = "", -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != last + 1:
            yield comment
            comment = ""
        comment += " " + token.string.lstrip("# ")
        last = token.start[0]
    yield comment


def python_hits(path: Path) -> list[str]:
    return [hit for text in python_prose(path.read_text(encoding="utf-8")) for hit in hits(text)]


def prose_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a Markdown page outside code blocks, tables and front matter."""
    code = False
    front_matter = text.startswith("---\n")
    for number, line in enumerate(text.splitlines(), 1):
        if front_matter:
            front_matter = number == 1 or line != "---"
        elif line.startswith("```"):
            code = not code
        elif not code and not line.startswith(("|", "    ")):
            yield number, line


# --- tests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MARKDOWN + YAML, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_and_comments_of_settings_are_plain_english(path):
    text = path.read_text(encoding="utf-8")
    assert hits(yaml_comments(text) if path.suffix == ".yaml" else text) == []


def test_python_texts_are_plain_english():
    found = {str(path.relative_to(ROOT)): python_hits(path) for path in PYTHON}
    assert {name: texts for name, texts in found.items() if texts} == {}


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_markdown_lines_are_short(path):
    """Lines of at most 100 characters. A link or a piece of code that cannot be broken may be
    longer, on a line of its own or at the end of one."""
    for number, line in prose_lines(path.read_text(encoding="utf-8")):
        broken = re.sub(r"!?\[[^\]]*\]\([^)]*\)|`[^`]*`", "", line)
        words = len(broken.split()) if broken != line else 2
        assert len(line) <= WIDTH or words <= 1, f"{path.name}:{number} has {len(line)} characters"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("This is no run folder.", 1),
        ("codes that are\n  no AUs", 1),
        ("There is no prompt named 'x'.", 0),
        ("it is no longer used, and is no more than 3", 0),
        ("The run has no crop.", 0),
        ("It knows no box, and whoever goes on, once more.", 4),
        ("The layers are not on the GPU; the tone is nodding.", 0),
    ],
)
def test_the_phrases_are_found(text, count):
    assert len(hits(text)) == count


def test_python_prose_is_found_wherever_it_stands():
    source = '''
"""A module that
knows no box."""
# This run goes
# on.
words = {"nobody", "anew"}
raise ValueError(f"{path} is "
                 f"no folder of {words}")
'''
    assert len([hit for text in python_prose(source) for hit in hits(text)]) == 3
