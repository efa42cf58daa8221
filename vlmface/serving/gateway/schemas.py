"""What the gateway is asked and what it answers, as OpenAPI tells it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(allow_inf_nan=False)]
Box = Annotated[list[Number], Field(min_length=4, max_length=4)]
Faces = Literal["all", "largest", "none"]
TASKS = "What is asked about each face; everything if it is left out."
FACES = (
    "Which faces are looked for; none: the picture is shown as a whole. Left out: largest for a "
    "model that was trained on faces, otherwise none."
)
_LEFT_OUT: Any = None  # which a client cannot send


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Form(_Strict):
    """The text fields of a form."""

    tasks: list[str] | None = Field(None, description=TASKS, min_length=1)
    faces: Faces = Field(_LEFT_OUT, description=FACES)


class Sent(Form):
    """A body in JSON."""

    image: str = Field(
        min_length=1, description="The picture's file in base64, bare or as a data URI: no link."
    )
    boxes: list[Box] | None = Field(
        None,
        min_length=1,
        description="Where the faces are, instead of `faces`: left, top, right, bottom in pixels "
        "of the upright picture.",
    )


class ActionUnit(BaseModel):
    au: int
    name: str
    region: str


class Answer(BaseModel):
    prompt: str = Field(description="the id of what the model was asked")
    label: str | None = Field(description="null: no valid answer")
    probabilities: dict[str, float] | None = Field(description="null: the model does not tell")
    status: str = Field(description="how the answer could be read")
    complete: bool = Field(description="whether the model came to an end by itself")
    text: str = Field(description="all that it wrote")
    seconds: float


class Face(BaseModel):
    """What is said of one face."""

    box: list[float] | None = Field(description="pixels; null: the picture was taken whole")
    face_found: bool | None = Field(
        description="null: none was looked for; false: there is none, so that every label is null "
        "unless scene_only is true"
    )
    scene_only: bool = Field(
        description="no face was found, and the model judged what is around it alone"
    )
    sure: bool
    aus: list[ActionUnit]
    rationale: str
    answers: dict[str, Answer]
    note: str | None = Field(description="what the model is not fit for")


class Analysis(BaseModel):
    request_id: str
    width: int = Field(description="of the upright picture, in pixels")
    height: int
    faces: list[Face]
    left_out: int = Field(description="smaller faces beyond the gateway's limit")
    model: str
    seconds: float


class Health(BaseModel):
    status: Literal["ready", "draining"]
    model: str
    tasks: list[str]


class Failure(BaseModel):
    request_id: str
    reason: str = Field(description="a word for programs")
    message: str = Field(description="cause and fix, for people")


def request_body(tasks: list[str], max_faces: int) -> dict[str, Any]:
    """OpenAPI's description of both bodies."""
    sent, form = Sent.model_json_schema(), Form.model_json_schema()
    for field in (sent["properties"]["tasks"], form["properties"]["tasks"]):
        _array(field)["items"] = {"type": "string", "enum": tasks}
    _array(sent["properties"]["boxes"])["maxItems"] = max_faces
    form["properties"]["tasks"] = _array(form["properties"]["tasks"]) | {"description": TASKS}
    for schema in (sent, form):
        del schema["properties"]["faces"]["default"]
    form["properties"]["image"] = {"type": "string", "format": "binary", "description": "a file"}
    form["required"] = ["image"]
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": sent},
        },
    }


def _array(field: dict[str, Any]) -> dict[str, Any]:
    """Of a field that may also be null, which a form cannot say."""
    return next(one for one in field["anyOf"] if one["type"] == "array")
