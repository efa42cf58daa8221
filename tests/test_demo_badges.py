"""Numbers of faces stand beside the faces, within the picture."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from vlmface.demo import views
from vlmface.demo.badges import place_badges
from vlmface.demo.face_detection import Face

SIZE = (400, 300)


def covers(badge: tuple[float, float], radius: float, box: Any) -> bool:
    x, y = badge
    return (
        box[0] < x + radius and x - radius < box[2] and box[1] < y + radius and y - radius < box[3]
    )


@pytest.mark.parametrize(
    "faces",
    [
        [(100, 100, 180, 200), (220, 90, 300, 190)],
        [(0, 0, 80, 100), (320, 0, 400, 100), (0, 200, 80, 300), (320, 200, 400, 300)],
        [(0, 0, 120, 300), (280, 0, 400, 300)],  # from edge to edge
        [(40, 40, 120, 140), (121, 40, 200, 140), (201, 40, 280, 140)],  # in a row, touching
        [(100, 50, 300, 280), (150, 5, 200, 49)],
    ],
)
def test_badges_are_on_no_face_and_in_the_picture(faces: list[Any]) -> None:
    radius = 8.0
    badges = place_badges(faces, SIZE, radius)
    for index, badge in enumerate(badges):
        assert not any(covers(badge, radius, face) for face in faces)
        assert radius <= badge[0] <= SIZE[0] - radius and radius <= badge[1] <= SIZE[1] - radius
        others = badges[:index]
        assert all(abs(badge[0] - x) + abs(badge[1] - y) > radius for x, y in others)


def test_where_there_is_room_a_badge_is_at_the_upper_left() -> None:
    for left, top in ((100.3, 50.7), (33.1, 41.9), (210.123, 7.5)):
        ((x, y),) = place_badges([(left, top, left + 90, top + 100)], SIZE, 8.8)
        assert x < left and top < y < top + 20


def test_without_room_a_badge_stays_in_the_picture() -> None:
    for x, y in place_badges([(-5, -5, 410, 310), (10, 10, 390, 290)], SIZE, 8.0):
        assert 0 < x < SIZE[0] and 0 < y < SIZE[1]


def test_one_face_has_no_number_and_two_have() -> None:
    image = Image.new("RGB", SIZE)
    faces = [Face((100, 100, 180, 200)), Face((220, 90, 300, 190))]
    assert "vf-number" not in views.picture(image, faces[:1], 0)
    assert views.picture(image, faces, 0).count('class="vf-number"') == 2
    assert "<figcaption" not in views.picture(image, faces, 0)
    assert "a &lt;b&gt;" in views.picture(image, faces, 0, note="a <b>")
