"""A model family: LLaVA's, under a model type of its own."""

from dataclasses import dataclass

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from vlmface.families.llava import Llava
from vlmface.families.tiny.llava import TinyLlava


class FaceLlavaConfig(LlavaConfig):
    model_type = "face_llava"


class FaceLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = FaceLlavaConfig


AutoConfig.register("face_llava", FaceLlavaConfig)
AutoModelForImageTextToText.register(FaceLlavaConfig, FaceLlavaForConditionalGeneration)


@dataclass(frozen=True, kw_only=True)
class TinyFaceLlava(TinyLlava):
    model_type: str = "face_llava"

    def config(self, processor):
        fields = super().config(processor).to_dict()
        return FaceLlavaConfig(**{k: v for k, v in fields.items() if k != "model_type"})


class FaceLlava(Llava):
    NAME, MODEL_TYPES, TINY = "face_llava", ("face_llava",), TinyFaceLlava
