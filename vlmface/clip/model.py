"""Open a CLIP of open_clip: its towers, its tokenizer, and its preprocessing in two halves.

Pictures become uint8 squares (`Clip.square`, once a picture, kept in memory or not) and then
normalised tensors (`Clip.pixels`, a batch at a time): together what the model's own transform does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image

from vlmface import manifest
from vlmface.clip.fused import fuse
from vlmface.errors import UserError, did_you_mean
from vlmface.resources import resource

TINY = "vlmface-clip-tiny"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def is_clip(base: str | Path) -> bool:
    """Whether a base model's name is one of a CLIP: "vlmface-clip-tiny", a folder with
    open_clip_config.json, "NAME/TAG" of open_clip's list, or "hf-hub:OWNER/NAME"."""
    if str(base) == TINY or str(base).startswith("hf-hub:"):
        return True
    folder = Path(base).expanduser()
    if (
        str(base) == manifest.TINY_MODEL or folder.is_dir()
    ):  # told without open_clip, which loads slowly
        return (folder / CONFIG).is_file()
    import open_clip

    return str(base).partition("/")[0] in open_clip.list_models()


def _source(base: str) -> tuple[str, str | None]:
    """(name, pretrained) for open_clip. Raises UserError."""
    import open_clip

    if base == TINY:
        return f"local-dir:{resource('clip_tiny')}", None
    if base.startswith("hf-hub:"):
        return base, None
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} is not a CLIP: it has no {CONFIG}")
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            raise UserError(f"{folder} has {CONFIG}, but no weights: restore {WEIGHTS}")
        return f"local-dir:{folder}", None
    name, _, tag = base.partition("/")
    model_names = open_clip.list_models()
    if name not in model_names:
        raise UserError(
            f"open_clip has no model {name!r}{did_you_mean(name, model_names, 4)}: use a name "
            f"such as {TINY} or ViT-B-32/openai (all: open_clip.list_models()), or a folder with "
            f"{CONFIG}"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise UserError(
            f"open_clip has no weights {tag!r} of {name}{did_you_mean(tag, tags, 3)}: write "
            f"{name}/TAG with one of {', '.join(tags) or '(none are published)'}"
        )
    return name, tag


@dataclass
class Clip:
    """A CLIP of open_clip.

    Attributes:
        model: open_clip's model.
        tokenizer: open_clip's tokenizer.
        config: the content of open_clip_config.json.
        base: the name that it was opened by, see `is_clip`.
    """

    model: Any
    tokenizer: Any
    config: dict[str, Any]
    base: str

    def __post_init__(self) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2
        from torchvision.transforms import Normalize, ToTensor

        steps = image_transform_v2(PreprocessCfg(**self.config["preprocess_cfg"]), is_train=False)
        *self._to_square, tensor, normalise = steps.transforms
        if not isinstance(tensor, ToTensor) or not isinstance(normalise, Normalize):
            raise UserError(
                f"the preprocessing of {self.base} ends with {tensor} and {normalise}, expected "
                "ToTensor and Normalize: use another model or version of open_clip"
            )
        self.mean, self.std = (
            torch.tensor(v).view(3, 1, 1) for v in (normalise.mean, normalise.std)
        )
        if hasattr(self.model, "text"):  # so do all models that are not OpenAI's own shape
            self.text_tower = self.model.text
        else:
            self.text_tower = self.model

    @property
    def side(self) -> int:
        """Pixels of the squares that the image tower takes."""
        size = self.model.visual.image_size
        return int(size if isinstance(size, int) else size[0])

    @property
    def width(self) -> int:
        """Length of a feature."""
        return int(self.config["model_cfg"]["embed_dim"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.logit_scale.device

    # --- pictures ---------------------------------------------------------------------------------

    def square(self, image: Image.Image) -> np.ndarray:
        """An RGB picture as the tower's uint8 square (3, side, side)."""
        for step in self._to_square:
            image = step(image)
        return np.asarray(image).transpose(2, 0, 1)

    def pixels(self, squares: torch.Tensor) -> torch.Tensor:
        """uint8 squares (..., 3, side, side) as the tower's input, on the model's device and in its
        precision."""
        squares = squares.to(self.device, non_blocking=True)
        mean, std = self.mean.to(self.device), self.std.to(self.device)
        return squares.float().mul_(1 / (255 * std)).sub_(mean / std).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.model.logit_scale.dtype

    def image_features(self, squares: torch.Tensor, *, normalize: bool = True) -> torch.Tensor:
        """Features (n, width) of uint8 squares (n, 3, side, side)."""
        return self.model.encode_image(self.pixels(squares), normalize=normalize)

    # --- texts ------------------------------------------------------------------------------------

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids (n, context_length). The caller has checked the lengths."""
        return self.tokenizer(list(texts))

    def text_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Normalised features (n, width) of token ids, on the model's device."""
        tokens = tokens.to(self.device)
        if not self.reads_embedded:
            return self.model.encode_text(tokens, normalize=True)
        if self._causal:
            # A causal tower does not see the tokens after the last text's end.
            tokens = tokens[:, : int(tokens.argmax(-1).max()) + 1]
        return self.read_embedded(self.text_tower.token_embedding(tokens), tokens)

    @property
    def reads_embedded(self) -> bool:
        """Whether the text tower is open_clip's own, so that its input can be learnt."""
        tower = self.text_tower
        return hasattr(tower, "token_embedding") and getattr(tower, "cls_emb", None) is None

    @property
    def _pool(self) -> str:
        tower = self.text_tower
        return getattr(tower, "pool_type", None) or tower.text_pool_type

    @property
    def _causal(self) -> bool:
        return self.text_tower.attn_mask is not None and self._pool == "argmax"

    def read_embedded(self, embedded: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Normalised features (n, width) of texts given as embeddings (n, length, text width);
        `tokens` (n, length) say where each ends."""
        from open_clip.transformer import text_global_pool

        tower = self.text_tower
        length = embedded.shape[1]
        kind = tower.transformer.get_cast_dtype()
        hidden = embedded.to(kind) + tower.positional_embedding[:length].to(kind)
        mask = None if tower.attn_mask is None else tower.attn_mask[:length, :length]
        hidden = tower.ln_final(tower.transformer(hidden, attn_mask=mask))
        eos = getattr(tower, "eos_id", getattr(tower, "text_eos_id", None))
        pooled = text_global_pool(hidden, tokens, self._pool, eos_token_id=eos)
        projection = tower.text_projection
        if isinstance(projection, torch.nn.Linear):
            pooled = projection(pooled)
        elif projection is not None:
            pooled = pooled @ projection
        return F.normalize(pooled, dim=-1)


def load_clip(base: str | Path, *, device: str | torch.device = "cpu", dtype: Any = None) -> Clip:
    """Open a CLIP with weights, which open_clip downloads if necessary.

    Args:
        base: its name, see `is_clip`.
        device: of the model.
        dtype: of all weights, by default float32.

    Raises:
        UserError: a name or weights that do not exist; the message suggests the nearest ones.
    """
    import open_clip

    name, tag = _source(str(base))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # open_clip logs every step to the root logger
    try:
        with warnings.catch_warnings(), _without_remote_code():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            settings = open_clip.get_model_config(name)
            if settings is None:
                raise UserError(f"open_clip has no configuration of {base}")
            _check_tokenizer(settings, base)
            # OpenAI's weights need the activation that they were trained with.
            quick = tag is not None and bool(
                (open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu")
            )
            model = open_clip.create_model(
                name, tag, device=device, require_pretrained=True, force_quick_gelu=quick
            )
            tokenizer = open_clip.get_tokenizer(name)
    except UserError:
        raise
    except Exception as error:  # the hub's client and damaged files raise many unrelated kinds
        raise UserError(
            f"cannot open the CLIP {str(base)!r}: {type(error).__name__}: {error}. Check the name "
            f"and the network, or give a folder with {CONFIG} and {WEIGHTS}"
        ) from error
    finally:
        root.setLevel(level)
    if quick:
        settings["quick_gelu"] = True
    config = {
        "model_cfg": settings,
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
    if dtype is not None:
        model = model.to(dtype)
    fuse(model)
    return Clip(model.eval(), tokenizer, config, str(base))


@contextlib.contextmanager
def _without_remote_code() -> Iterator[None]:
    """While a text tower of transformers is opened, which open_clip does without the setting
    `trust_remote_code`: code of a checkpoint is refused instead of offered."""
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def _check_tokenizer(settings: dict[str, Any], base: str | Path) -> None:
    """open_clip hands a checkpoint's own words on to transformers. Raises UserError."""
    text = settings.get("text_cfg")
    words = text.get("tokenizer_kwargs", {}) if isinstance(text, dict) else {}
    if not isinstance(words, dict) or any("trust" in str(word) for word in words):
        raise UserError(
            f"the configuration of the CLIP {base} has tokenizer_kwargs {words!r}: its code is not "
            "run. Use another checkpoint"
        )


def save_clip(clip: Clip, folder: str | Path, dtype: str | None = None) -> None:
    """Write a folder that `load_clip`, and open_clip itself ("local-dir:FOLDER"), opens.

    Args:
        clip: the model.
        folder: to write.
        dtype: of the weights in it, such as "float16"; by default the model's own.
    """
    from safetensors.torch import save as to_bytes

    from vlmface.utils.files import atomic_write

    kind = None if dtype is None else getattr(torch, dtype)
    weights = {
        name: tensor.detach().to("cpu", kind if tensor.is_floating_point() else None).contiguous()
        for name, tensor in clip.model.state_dict().items()
    }
    atomic_write(Path(folder) / WEIGHTS, to_bytes(weights))
    atomic_write(Path(folder) / CONFIG, json.dumps(clip.config, indent=2) + "\n")


def weights_sha(clip: Clip) -> str:
    """12 hex digits over the names and numbers of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
