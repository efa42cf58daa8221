"""Request and response bodies, as documented by OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(allow_inf_nan=False)]
Box = Annotated[list[Number], Field(min_length=4, max_length=4)]
Faces = Literal["all", "largest", "none"]
TASKS = "The tasks to answer for each face; all by default."
FACES = (
    "Which faces are detected; none: the model receives the whole picture. Default: largest for a "
    "model that was trained on faces, otherwise none."
)
_OMITTED: Any = None  # a client cannot send it


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FormBody(_Strict):
    """The text fields of a form."""

    tasks: list[str] | None = Field(None, description=TASKS, min_length=1)
    faces: Faces = Field(_OMITTED, description=FACES)


class JsonBody(FormBody):
    """A body in JSON."""

    image: str = Field(
        min_length=1,
        description="The image file in base64, bare or as a data URI; links are rejected.",
    )
    boxes: list[Box] | None = Field(
        None,
        min_length=1,
        description="The faces, instead of `faces`: left, top, right, bottom in pixels of the "
        "upright picture.",
    )


class ActionUnit(BaseModel):
    """An action unit that the model named."""

    au: int
    name: str
    region: str


class Answer(BaseModel):
    """The answer to one prompt."""

    prompt: str = Field(description="the prompt's id")
    label: str | None = Field(description="null: no valid answer")
    probabilities: dict[str, float] | None = Field(description="null: not available")
    status: str = Field(description="how the answer was parsed")
    complete: bool = Field(description="whether generation ended by itself")
    text: str = Field(description="the generated text")
    latency_s: float
    value: float | None = Field(description="the label as a number; null: it is in words")
    range: list[float] | None = Field(description="lowest and highest number of the scale")
    expected: float | None = Field(
        description="mean of the scale's numbers, weighted with their probabilities"
    )


class Face(BaseModel):
    """The report on one face."""

    box: list[float] | None = Field(description="pixels; null: the whole picture was used")
    face_found: bool | None = Field(
        description="null: detection was not run; false: no face was found, every label is null "
        "unless scene_only is true"
    )
    search_note: str | None = Field(
        description="which faces of the picture may have been missed; null: it was not searched "
        "for all faces"
    )
    scene_only: bool = Field(
        description="no face was detected, and the model judged its surroundings alone"
    )
    is_confident: bool
    evidence: str | None = Field(
        description="the measured movements of the face that the prompt contained; null: none"
    )
    aus: list[ActionUnit]
    rationale: str
    answers: dict[str, Answer]
    limitations: str | None = Field(description="what the model must not be used for")


class AnalyzeResponse(BaseModel):
    """The response of /v1/analyze."""

    request_id: str
    width: int = Field(description="of the upright picture, in pixels")
    height: int
    faces: list[Face]
    skipped: int = Field(description="smaller faces beyond the gateway's limit")
    model: str
    latency_s: float


class Health(BaseModel):
    """The response of /healthz."""

    status: Literal["ready", "draining"]
    model: str
    tasks: list[str]


class ErrorBody(BaseModel):
    """The body of an error."""

    request_id: str
    reason: str = Field(description="a code for programs")
    message: str = Field(description="cause and fix, for people")


def request_body(tasks: list[str], max_faces: int) -> dict[str, Any]:
    """OpenAPI's description of both bodies.

    Args:
        tasks: What the model answers.
        max_faces: The gateway's limit.
    """
    json_schema, form = JsonBody.model_json_schema(), FormBody.model_json_schema()
    for field in (json_schema["properties"]["tasks"], form["properties"]["tasks"]):
        _array(field)["items"] = {"type": "string", "enum": tasks}
    _array(json_schema["properties"]["boxes"])["maxItems"] = max_faces
    form["properties"]["tasks"] = _array(form["properties"]["tasks"]) | {"description": TASKS}
    for schema in (json_schema, form):
        del schema["properties"]["faces"]["default"]
    form["properties"]["image"] = {"type": "string", "format": "binary", "description": "a file"}
    form["required"] = ["image"]
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": json_schema},
        },
    }


def _array(field: dict[str, Any]) -> dict[str, Any]:
    """The array of a field that may also be null, which a form cannot express."""
    return next(schema for schema in field["anyOf"] if schema["type"] == "array")
