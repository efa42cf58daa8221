"""Is time needed? A model of clips beside the same classifier that is shown one frame, or the mean.

python eval/temporal_ablation.py --config clip_temporal_tiny --output_dir runs/clip_time
"""

from __future__ import annotations

from vlmface.pipelines.temporal_ablation import main
from vlmface.utils.config import run_main

if __name__ == "__main__":
    run_main(main)
