"""Where training differs from TRL's SFTTrainer, and the training log."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import ProgressCallback, Trainer, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from trl import SFTTrainer

from vlmface import run_dir as run_dirs
from vlmface.data.row_images import image_refs, open_row_image
from vlmface.encode import IGNORED, GroupedSampler, to_model
from vlmface.errors import UserError
from vlmface.families.base import Family
from vlmface.train.augmentation import AugmentedRows, EpochSampler
from vlmface.train.loss import summed_cross_entropy
from vlmface.train.validation import PREFIX, Selection, Validation
from vlmface.utils import distributed

KEPT = 2  # checkpoints, besides the best one


class Resumable:
    """The common part of our trainers, on top of transformers' Trainer:

    - `finalize_model`: with a quantised base TRL 1.16 keeps all trained weights in bfloat16, where
      steps of a small learning rate are lost to rounding; here they are float32.
    - `training_step`: FSDP2 cannot resume an optimizer that lacks state for a trained weight,
      such as those of LLaVA's last tower layer, whose output is not used: they get zero gradients.
    - `training_step`, `_get_grad_norm`: a loss or gradient norm that is not finite ends the run
      before the step is counted, logged or saved.
    - `_save_checkpoint`: a checkpoint counts only once it is complete, and has no model card. It
      lists its files, and has a hash of the names and sizes of its trained weights. Older ones are
      deleted after that, except the best one.
    - `_load_from_checkpoint`: loads whole weights under the names that they were saved with.
    - `_run_epoch`: makes no step beyond the last one when a trained run is resumed.
    - `_evaluate`: measures what `validation` asks for, after the log of a step and before its
      checkpoint.
    """

    model: Any
    args: Any
    accelerator: Any
    state: Any
    is_fsdp_enabled: bool
    model_wrapped: Any
    control: Any
    trainable_sha: str
    validation: Validation | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Losses of the micro-batches of the current step.
        self._step_losses: list[torch.Tensor] = []
        super().__init__(*args, **kwargs)

    def finalize_model(self, family: Family) -> None:
        """Convert the trained weights; must be called at the end of __init__.

        Args:
            family: The model's family.
        """
        trained = self.model
        # ZeRO-3 requires one dtype for all weights, and keeps a float32 copy itself.
        if not is_deepspeed_zero3_enabled():
            for parameter in trained.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        if self.is_fsdp_enabled:
            # LLaVA lacks some of the layers that transformers would keep whole (CLIP's text side),
            # and accelerate 1.15 rejects a name that it cannot find.
            present = {type(module).__name__ for module in trained.modules()}
            plugin = self.accelerator.state.fsdp_plugin
            plugin.transformer_cls_names_to_wrap = sorted(present & set(trained._no_split_modules))
        self.trainable_sha = trainable_sha(trained)
        self.family = family

    def train_to_end(self, run_dir: Path) -> None:
        """Train, from the run's last complete checkpoint if it has one, and end with the weights of
        the best checkpoint, if one is selected. All processes must call it.

        Args:
            run_dir: The folder of the run.

        Raises:
            UserError: A checkpoint that is needed is damaged, or training diverges.
        """
        resume = run_dirs.checkpoint_to_resume(run_dir, self.trainable_sha)
        if resume and self.args.process_index == 0:
            print(f"resuming from {resume}")
        if resume and self.selection is not None:
            self._resume_selection(resume, self.selection)
        self._step_losses.clear()
        trainer: Any = self
        trainer.add_callback(FirstStepCallback(run_dir))
        if self.validation is not None:
            trainer.add_callback(ValidationCallback(self.validation))
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
            self._check_weights()
        finally:  # so that an error message starts on a new line
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, ProgressBarWithLoss) and callback.training_bar is not None:
                    callback.training_bar.close()
        self._restore_best(run_dir)

    # --- validation -------------------------------------------------------------------------------

    @property
    def selection(self) -> Selection | None:
        """Which checkpoint is kept; None: the last one."""
        return None if self.validation is None else self.validation.selection

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure and log; save a better model at once, and stop where patience has run out."""
        assert self.validation is not None
        measured = self.validation.measure(self)
        trainer: Any = self
        trainer.log(dict(measured))
        self.control.should_evaluate = False  # the end of an epoch would measure again
        if self.selection is not None and self.selection.key in measured:
            history = self.state.log_history
            best = self.selection.best(history)
            is_best = best is not None and best["step"] == self.state.global_step
            stops = self.selection.stops(history)
            self.control.should_save |= is_best or stops
            self.control.should_training_stop |= stops
        return measured

    def _resume_selection(self, checkpoint: Path, selection: Selection) -> None:
        """Check that the best checkpoint so far exists, and do not train further if the run had
        stopped early. Raises UserError."""
        history = run_dirs.checkpoint_history(checkpoint)
        if best := selection.best(history):
            check_best(checkpoint.with_name(f"checkpoint-{best['step']}"))
        if selection.stops(history):
            self.args.max_steps = step = run_dirs.step_of(checkpoint)
            if self.args.process_index == 0:
                print(f"training has stopped early after step {step}: no further step is made")

    def _restore_best(self, run_dir: Path) -> None:
        """Load the weights of the best checkpoint, unless they are those of the last step."""
        best = None if self.selection is None else self.selection.best(self.state.log_history)
        if best is None or best["step"] == self.state.global_step:
            return
        trainer: Any = self
        path = run_dir / "checkpoints" / f"checkpoint-{best['step']}"
        check_best(path)
        if trainer.is_deepspeed_enabled:
            is_whole = not hasattr(self.model, "peft_config")
            deepspeed_load_checkpoint(self.model_wrapped, str(path), load_module_strict=is_whole)
        else:
            trainer._load_from_checkpoint(str(path))

    def validation_results(self) -> dict[str, Any]:
        """For metrics.json, after training: {"best": {"step", "epoch", "metric", "value"},
        "stopped_early"} if a checkpoint was selected, {} otherwise."""
        selection, history = self.selection, self.state.log_history
        best = None if selection is None else selection.best(history)
        if selection is None or best is None:
            return {}
        entry = {"step": best["step"], "epoch": round(best["epoch"], 4)}
        entry |= {"metric": selection.metric, "value": best[selection.key]}
        return {"best": entry, "stopped_early": selection.stops(history)}

    # --- steps ------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # transformers 5.24 renames whole weights when it saves them. Its trainer does not undo that
        # and ignores unknown names, so that it would load none of them.
        files = sorted(Path(resume_from_checkpoint).glob("model*.safetensors"))
        if files and not (hasattr(self.model, "peft_config") or self.is_fsdp_enabled):
            load_whole_weights(self.model, files)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A run that has made its last step in the middle of an epoch would make one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._step_losses.append(loss.detach().float())
        if self.is_fsdp_enabled:
            for parameter in self.model.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # The only place between the backward passes of a step and its update where the norm is
        # known. DDP, ZeRO and FSDP have summed the gradients: all processes see the same norm.
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        self._check_step(norm)
        return norm

    def _check_step(self, norm: Any) -> None:
        """Raise UserError, in all processes, if the loss of one of them or the gradient norm is not
        finite in the current step."""
        loss = torch.stack(self._step_losses).sum()
        self._step_losses.clear()
        full = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        size = torch.as_tensor(0.0 if full is None else full, dtype=loss.dtype).to(loss.device)
        # DeepSpeed reports -1 for a norm that is not finite.
        size = torch.where(size < 0, torch.full_like(size, torch.nan), size)
        values = self.accelerator.gather(torch.stack([loss, size])).view(-1, 2).cpu()
        for column, name in enumerate(("loss", "gradient norm")):
            bad = values[:, column][~values[:, column].isfinite()]
            if len(bad):
                step = self.state.global_step + 1
                self._diverged(f"the {name} is {bad[0].item()} at step {step}")

    @torch.no_grad()
    def _check_weights(self) -> None:
        """Raise UserError, in all processes, if a trained weight is not finite."""
        bad = torch.zeros(1, device=self.accelerator.device)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                # This process's shard of a weight under ZeRO-3 or FSDP.
                shard = getattr(parameter, "ds_tensor", parameter.data)
                shard = shard.to_local() if hasattr(shard, "to_local") else shard
                bad += (~shard.isfinite()).sum().to(bad)
        if num_weights := int(self.accelerator.gather(bad).sum()):
            step = self.state.global_step
            self._diverged(f"{num_weights} trained weights are not finite after step {step}")

    def _diverged(self, cause: str) -> NoReturn:
        raise UserError(
            f"{cause} (learning_rate {self.args.learning_rate:g}, max_grad_norm "
            f"{self.args.max_grad_norm:g}): lower learning_rate or max_grad_norm, or raise "
            "warmup_steps, and start again with --overwrite; earlier checkpoints are kept"
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._check_weights()
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:  # the checkpoint may be overwritten
            (folder / run_dirs.COMPLETE_FILE).unlink(missing_ok=True)
        Trainer._save_checkpoint(self, model, trial)  # type: ignore[arg-type]
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            run_dirs.complete_checkpoint(folder, self.trainable_sha)
            run_dirs.prune_checkpoints(folder.parent.parent, KEPT, self._best_step)

    def _best_step(self, last: int) -> int | None:
        """The step of the best evaluation up to a step."""
        history = [entry for entry in self.state.log_history if entry["step"] <= last]
        best = None if self.selection is None else self.selection.best(history)
        return None if best is None else int(best["step"])

    def whole_state(self) -> dict[str, Any] | None:
        """Gather a model that is sharded over processes. All processes must call it.

        Returns:
            The weights (under LoRA, the trained ones) on the main process; None if the model is not
            sharded.
        """
        model = self.model
        if self.is_fsdp_enabled:
            # After gathering, tied weights do not share memory, and would be saved twice.
            tied = model.all_tied_weights_keys
            state = self.accelerator.get_state_dict(model)
            return {name: weight for name, weight in state.items() if name not in tied}
        if not is_deepspeed_zero3_enabled():
            return None
        return self.model_wrapped._zero3_consolidated_16bit_state_dict(
            exclude_frozen_parameters=hasattr(model, "peft_config")
        )


class SupervisedTrainer(Resumable, SFTTrainer):
    """SFTTrainer with two overridden methods:

    - `compute_loss`: without Triton (on a CPU), TRL 1.16 runs the head, an entropy and an
      argmax over every position, prompt and image included; here the head sees the answers only.
    - `_get_train_sampler`: transformers' length-grouping sampler draws from the global random
      state, so a run resumed in the middle of an epoch would get other rows.
    """

    def __init__(self, *args: Any, family: Family, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(ProgressCallback)
        self.add_callback(ProgressBarWithLoss)
        self.finalize_model(family)
        # Qwen2.5-VL's class declares that its own loss does not accept the number of tokens in the
        # whole batch, so the Trainer would not count them; compute_loss accepts it.
        self.model_accepts_loss_kwargs = True
        self.lengths = kwargs["train_dataset"]["length"]
        self.features: Features | None = None  # of a frozen tower

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Cross-entropy over the supervised tokens, weighted if the rows have `token_weights`,
        summed and divided by their number in the whole batch (all processes and accumulation
        steps). Arguments as in transformers' Trainer.

        Weights have the mean 1 over the rows of the run. Dividing by the number of tokens rather
        than by the sum of the batch's weights keeps the mean gradient over batches that of the
        weighted loss over all rows."""
        labels = inputs.pop("labels")
        weights = inputs.pop("token_weights", None)
        rows = inputs.pop("row")
        # Rows are padded on the right and start with the same prompt: all supervised tokens are
        # after the first supervised column.
        first = int((labels != IGNORED).any(0).nonzero()[0])
        if self.features is not None:
            core = self.accelerator.unwrap_model(model)
            core = core.get_base_model() if hasattr(core, "get_base_model") else core
            features = [
                feature.to(core.device) for row in rows.tolist() for feature in self.features[row]
            ]
            with self.accelerator.autocast():  # the projector may be float32
                inputs |= self.family.inputs_from_features(core, features)
        outputs = model(**inputs, use_cache=False, logits_to_keep=labels.shape[1] - first + 1)
        # The last logits predict nothing; removing them would copy all others.
        targets = F.pad(labels[:, first:], (0, 1), value=IGNORED)
        logits = outputs.logits.clone() if return_outputs else outputs.logits
        if weights is not None:
            weights = F.pad(weights[:, first:], (0, 1)).flatten()
        loss = summed_cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), IGNORED, weights
        )
        if num_items_in_batch is None:
            loss = loss / (targets != IGNORED).sum()
        else:
            loss = loss / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = (
                    loss * self.accelerator.num_processes
                )  # DDP averages losses that must be summed
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        step_size = self.args.train_batch_size * self.args.world_size
        sampler = EpochSampler if isinstance(self.train_dataset, AugmentedRows) else GroupedSampler
        return sampler(self.lengths, step_size, self.args.seed)


@torch.no_grad()
def load_whole_weights(model: Any, files: Sequence[Path]) -> None:
    """Load the weights of a checkpoint, which may have other names there than in the model.

    Args:
        model: Without an adapter.
        files: The checkpoint's weights, in safetensors.

    Raises:
        UserError: They are not the model's.
    """
    from safetensors.torch import load_file
    from transformers.core_model_loading import revert_weight_conversion

    by_saved_name = revert_weight_conversion(model, model.state_dict())
    storage_addresses = {weight.data_ptr() for weight in model.state_dict().values()}
    loaded = set()
    for file in files:
        for name, weight in load_file(file).items():
            target = by_saved_name.get(name)
            if (
                target is None
                or target.data_ptr() not in storage_addresses
                or target.shape != weight.shape
            ):
                raise UserError(f"{file}: {name} is not a weight of the model: restore the file")
            target.copy_(weight)
            loaded.add(target.data_ptr())
    if loaded != storage_addresses:
        raise UserError(
            f"{files[0].parent} lacks {len(storage_addresses - loaded)} weights: restore it"
        )


def check_best(checkpoint: Path) -> None:
    """Check in all processes that the best checkpoint has all its files. Raises UserError."""
    remedy = "it is of the best checkpoint so far; restore it, or start again with --overwrite"
    distributed.on_main(lambda: run_dirs.check_checkpoint(checkpoint, remedy))


# {number in column `row`: features of each image of the row}.
Features = dict[int, list[torch.Tensor]]


def num_weights(parameter: Any) -> int:
    """Elements of a weight: of all its shards under ZeRO-3, before packing under NF4."""
    if hasattr(parameter, "quant_state"):
        return int(parameter.quant_state.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def trainable_sha(model: Any) -> str:
    """12 hex digits over the names and sizes of the weights that are trained."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            digest.update(f"{name} {num_weights(parameter)}\n".encode())
    return digest.hexdigest()[:12]


def all_tower_features(model: Any, family: Family, rows: Any, processor: Any) -> Features:
    """Compute the output of the frozen tower once for each number in column `row`.

    Args:
        model: The model.
        family: Its family.
        rows: Encoded rows with images.
        processor: The model's processor.

    Returns:
        (tokens, width) of each image, on the CPU.
    """
    from tqdm import tqdm

    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    first = {row: position for position, row in reversed(list(enumerate(rows["row"][:])))}
    features: Features = {}
    with torch.no_grad():
        for start in tqdm(range(0, len(first), 64), "image features", unit="batch"):
            numbers = list(first)[start : start + 64]
            stored = [image_refs(row) for row in rows.select([first[n] for n in numbers])]
            images = [open_row_image(image) for row in stored for image in row]
            inputs = to_model(family.image_inputs(processor, images), model)
            batch = [feature.cpu() for feature in family.tower_features(model, inputs)]
            for number, row in zip(numbers, stored, strict=True):
                features[number], batch = batch[: len(row)], batch[len(row) :]
    return features


class ProgressBarWithLoss(ProgressCallback):
    """A progress bar that ends with the loss, instead of a dictionary printed above it. What is
    measured on validation rows is printed as a line."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if self.training_bar is None or logs is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
        measured = [
            f"{name.removeprefix(PREFIX).replace('_', ' ')} {value:.3f}"
            for name, value in logs.items()
            if name.startswith(PREFIX)
        ]
        if measured:
            self.training_bar.write(f"step {state.global_step}, validation: {', '.join(measured)}")


class FirstStepCallback(TrainerCallback):
    """Records in the run's folder that the first step has been made."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.is_recorded = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and not self.is_recorded:
            run_dirs.mark_trained(self.run_dir)
            self.is_recorded = True


class ValidationCallback(TrainerCallback):
    """Starts the measurements of a `Validation`."""

    def __init__(self, validation: Validation) -> None:
        self.validation = validation

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = self.validation.is_due(state.global_step)


class JsonlLogger(TrainerCallback):
    """Writes log.jsonl, one line {"step", "epoch", "elapsed_s", ...} per logged step, and one more
    for each validation.

    Args:
        path: The file.
        keys: More fields of a step; None: everything that the trainer logs.
    """

    KEYS = ("loss", "learning_rate", "grad_norm")

    def __init__(self, path: Path, keys: Sequence[str] | None = KEYS) -> None:
        self.path = path
        self.keys = keys
        self.start_time = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from vlmface.run_dir import truncate_log

        earlier_s = (
            truncate_log(self.path.parent, state.global_step) if state.is_world_process_zero else 0
        )
        self.start_time = time.monotonic() - earlier_s

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The last step is always logged, however short the run.
        control.should_log = control.should_log or state.global_step >= state.max_steps

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        measured = [key for key in logs if key.startswith(PREFIX)]
        if not state.is_world_process_zero or not ("loss" in logs or measured):
            return
        line = {"step": state.global_step, "epoch": round(state.epoch, 4)}
        keys = [key for key in logs if key != "epoch"] if self.keys is None else self.keys
        keys = measured or keys
        line |= {key: float(logs[key]) for key in keys if logs.get(key) is not None}
        line["elapsed_s"] = round(time.monotonic() - self.start_time, 2)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
