"""Fit the estimator of action units (`vlmface.aus`) on rendered faces and labelled photographs.

    python recipes/fit_aus.py --output_dir runs/aus --photographs FOLDER --labels labels.csv

1. Faces are rendered and measured by the landmarker; both are kept in the cache.
2. Networks are fitted on two of three groups of people and give thresholds on the third.
3. With photographs, networks that were fitted without a fifth of their people are measured on it.
4. The networks of the file are fitted on everything, and measured on the test split of `synth`.

The file, figures.json with what was measured, and the sha256 to enter in vlmface/aus/model.py are
written. The same data and versions of packages give the same file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmface.errors import UserError
from vlmface.utils import config, distributed
from vlmface.utils.files import atomic_write, make_output_folder
from vlmface.utils.ranges import Checked, Count, Natural, Seed


@dataclass(frozen=True)
class Settings(Checked):
    """The command line.

    Args:
        output_dir: folder to write
        n_train: faces of the training split of synth
        n_varied: further faces, with any action units, turned further and of stronger shapes
        n_test: faces of the test split of synth
        photographs: folder of labelled photographs; null: rendered faces alone
        labels: their CSV file, with image, subject, AU12, AU25, ...
        workers: processes that render and measure
        seed: of the training
    """

    output_dir: str
    n_train: Count = 4000
    n_varied: Natural = 400
    n_test: Count = 600
    photographs: str | None = None
    labels: str | None = None
    workers: Count = 2
    seed: Seed = 0

    def check(self) -> None:
        """Raise UserError where photographs or their labels are missing."""
        if (self.photographs is None) != (self.labels is None):
            raise UserError("photographs and labels belong together: give both or none")


def run(settings: Settings) -> dict[str, Any]:
    """Fit and measure; returns the content of figures.json."""
    import torch

    from vlmface.aus import fitting, networks, photographs, rendered_faces

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out = Path(settings.output_dir)
    make_output_folder(out)
    train = rendered_faces.measure_synth("train", settings.n_train, workers=settings.workers)
    print(f"{len(train.index)} of {settings.n_train} faces of synth measured", flush=True)
    varied = None
    if settings.n_varied:
        varied = rendered_faces.measure_varied(settings.n_varied, settings.workers)
        print(f"{len(varied.index)} of {settings.n_varied} varied faces measured", flush=True)
    photos = None
    if settings.photographs is not None and settings.labels is not None:
        photos = photographs.read(Path(settings.photographs), Path(settings.labels))
    fit = fitting.Fit(train, varied, photos, networks.FitSettings(seed=settings.seed))
    model = fit.model()
    figures: dict[str, Any] = {}
    if photos is not None:
        figures["photographs"] = fit.cross_validate()
        print(f"photographs, other people: {json.dumps(figures['photographs'])}", flush=True)
    path = out / "landmarks.npz"
    sha256 = model.save(path)
    test = rendered_faces.measure_synth("test", settings.n_test, workers=settings.workers)
    figures |= _test(path, sha256, test)
    figures |= {"sha256": sha256, "bytes": path.stat().st_size}
    atomic_write(out / "figures.json", json.dumps(figures, indent=2) + "\n")
    print(f"sha256 {sha256}, {path.stat().st_size:,} bytes: {path}")
    return figures


def _test(path: Path, sha256: str, test: Any) -> dict[str, Any]:
    """The figures of the file on rendered faces of other people."""
    from vlmface.aus.figures import means, rendered_figures
    from vlmface.aus.model import Model

    model = Model.load(path, sha256)
    by_unit = rendered_figures(model, test)
    for au, row in by_unit.items():
        mark = "" if au in model.units else "  not told"
        print(f"AU{au:<3} " + "  ".join(f"{k} {v:.3f}" for k, v in row.items()) + mark)
    all_units = means(by_unit)
    of_reported_units = means({au: by_unit[au] for au in model.units})
    print(f"all AUs: {json.dumps(all_units)}\ntold:    {json.dumps(of_reported_units)}")
    return {"rendered": {"all": all_units, "told": of_reported_units, "by_au": by_unit}}


def main(argv: Sequence[str]) -> int:
    """`--output_dir DIR [--photographs FOLDER --labels FILE.csv] [--n_train N] ...`"""
    distributed.check_alone("recipes/fit_aus.py")
    run(config.parse_args(Settings, argv, usage=f"python recipes/fit_aus.py {main.__doc__}"))
    return 0


if __name__ == "__main__":
    config.run_main(main)
