"""Let a trained model write rationales for faces that have none. Each face is answered several
times; what passes the verifier and the vote becomes training data (Facial-R1's third stage).

    python recipes/synthesize.py                              # by the run of recipes/grpo.py
    python recipes/synthesize.py --model runs/small --label_source vote --output_dir runs/voted
    python recipes/synthesize.py --endpoint http://localhost:8000/v1 --model NAME --prompt face_cot

It can be interrupted at any time; run the same command again to resume.
The steps are in vlmface/rationale/build.py, with the writer in rationale/self_training.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmface.pipelines import synthesize
from vlmface.utils import config, distributed


def main(argv: Sequence[str]) -> int:
    distributed.check_alone("recipes/synthesize.py")
    settings = config.load_config(
        synthesize.Settings, argv, default="synthesize_tiny", usage=__doc__ or ""
    )
    return synthesize.run(settings)


if __name__ == "__main__":
    config.run_main(main)
