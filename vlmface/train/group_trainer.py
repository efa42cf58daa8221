"""TRL's GRPOTrainer with our encoder and rollouts, and the metrics of a generation batch."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import ProgressCallback
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import use_adapter

from vlmface import encode
from vlmface.answers import Answer
from vlmface.data import row_images
from vlmface.errors import UserError
from vlmface.families.base import Family
from vlmface.infer import sampling
from vlmface.train.rewards import RewardScorer
from vlmface.train.trainer import Features, ProgressBarWithLoss, Resumable
from vlmface.train.vllm_rollout import ServerGoneError, VLLMRolloutServer

Inputs = dict[str, Any]
_MAX_TRUNCATED = 5  # generation batches in a row with truncated completions only


@dataclass(frozen=True)
class Group:
    """The completions of one face.

    Attributes:
        index: The face's row.
        texts: The completions.
        answers: Parsed.
        advantages: Of each completion.
        rewards: {reward: values}, None where a reward gives no signal.
    """

    index: int
    texts: list[str]
    answers: list[Answer]
    advantages: list[float]
    rewards: dict[str, list[float | None]]


class GroupTrainer(Resumable, GRPOTrainer):
    """GRPOTrainer with four overridden methods:

    - `_prepare_inputs`: TRL shuffles the completions of a generation batch; here a group stays
      together, since it shares its prefix.
    - `_generate_and_score_completions`: TRL 1.16 encodes image and prompt once for each completion,
      by the processor's template rather than by our encoder; a sampled image token would crash the
      next pass (huggingface/trl#3847), and PaliGemma's completions would attend to what follows
      them, as their `token_type_ids` are filled with 0.
    - `_compute_loss`: passes the group's prefix to the next one, compares the log-probabilities
      with those of the rollout, and divides the loss "bnpo" by the tokens of all processes.
    - `_get_per_token_logps_and_entropies`: encodes a group's prefix once.
    """

    def __init__(
        self,
        *args: Any,
        family: Family,
        faces: Any,
        scorer: RewardScorer,
        stops: Sequence[int],
        top_p: float,
        max_logprob_drift: float,
        keep_features: bool,
        server: VLLMRolloutServer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(ProgressCallback)
        self.add_callback(ProgressBarWithLoss)
        self.finalize_model(family)
        self._copy_embedding_adapters()
        self.faces = faces  # rows of `encode_prompts`
        self.scorer = scorer
        self.stops = list(stops)
        self.rollout_top_p = top_p
        self.max_logprob_drift = max_logprob_drift
        self.limit: int = self.max_completion_length or 1
        self.group: int = self.num_generations or 1
        self.server = server  # samples the completions, if not this process
        self.keep_features = keep_features  # the tower is frozen and not sharded
        self.features: Features | None = None  # of a frozen tower
        self.collate = encode.Collator(self.processing_class, family)
        token: Any = self.processing_class
        self.never = [token.tokenizer.convert_tokens_to_ids(token.image_token)]
        self.groups: list[Group] = []  # of the last generation batch, of this process
        self._truncated_batches = 0
        self._shared: Inputs = {}

    def _copy_embedding_adapters(self) -> None:
        """Complete TRL's "ref" copy of an adapter: TRL 1.16 copies the weights whose names contain
        ".default."; those of embeddings end with it, and would start from zero."""
        model: Any = self.model
        if "ref" in getattr(model, "peft_config", {}):
            for name, parameter in model.named_parameters():
                if name.endswith(".default"):
                    copy = model.get_parameter(name.removesuffix("default") + "ref")
                    copy.data.copy_(parameter.data)

    # --- completions ------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Inputs:
        each = self.args.steps_per_generation or 1
        if self._step % (each * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._generate_and_score_completions(generation_batch)
        buffered: Any = self._buffered_inputs
        return buffered[self._step % each]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Micro-batches of whole groups. `inputs` has a row for each completion."""
        size, device = self.group, self.accelerator.device
        indices = [row["index"] for row in inputs]
        faces = indices[::size]
        each = len(faces) // (self.args.steps_per_generation or 1)
        parts = [faces[start : start + each] for start in range(0, len(faces), each)]
        batches = [self._prompts(part) for part in parts]

        rollouts = self._rollouts(parts, batches)
        ids = [row for rollout in rollouts for row in rollout.ids]
        complete = [flag for rollout in rollouts for flag in rollout.complete]
        texts = [self._text(row) for row in ids]
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        prompts = [row["prompt"] for row in inputs]
        per_reward = self._calculate_rewards(inputs, prompts, completions, ids)
        advantages, rewards = self._advantages(per_reward)
        weights = torch.tensor([self.scorer.weight(i) for i in indices], device=device)
        advantages = advantages * self.accelerator.gather(weights)
        start = self.accelerator.process_index * len(ids)
        mine = slice(start, start + len(ids))
        self._record(indices, texts, ids, complete, per_reward, rewards, advantages, mine)

        lengths = torch.tensor([len(row) for row in ids], device=device)
        total = self.accelerator.gather(lengths.sum()).sum()
        micro_batches = []
        at = mine.start
        for rows, batch, rollout in zip(parts, batches, rollouts, strict=True):
            padded = pad_sequence([torch.tensor(row) for row in rollout.ids], batch_first=True)
            log_probs = pad_sequence(
                [torch.tensor(row) for row in rollout.log_probs], batch_first=True
            )
            width = torch.tensor([len(row) for row in rollout.ids])
            mask = (torch.arange(padded.shape[1]) < width[:, None]).long().to(device)
            entry: Inputs = {
                "shared": batch,
                "rows": rows,
                "prompt_ids": batch["input_ids"].repeat_interleave(size, 0),
                "prompt_mask": batch["attention_mask"].repeat_interleave(size, 0),
                "completion_ids": padded.to(device),
                "completion_mask": mask,
                "advantages": advantages[at : at + len(rollout.ids)],
                "num_items_in_batch": total,
                "rollout_logps": log_probs.to(device),
            }
            at += len(rollout.ids)
            if self.num_iterations > 1:
                entry["old_per_token_logps"] = entry["rollout_logps"]
            if self.beta:
                entry["ref_per_token_logps"] = self._reference(entry)
            micro_batches.append(entry)
        return micro_batches

    def _prompts(self, faces: Sequence[int]) -> Inputs:
        """The collated prompts of some faces, with images unless their features are cached."""
        rows = self.faces.select(faces)
        counts = [len(row_images.image_refs(row)) for row in rows]
        if self.features is not None:
            rows = row_images.drop_image_columns(rows)
        batch = self.collate(list(rows))
        model: Any = self.model
        inputs: Inputs = encode.to_model(batch, model)
        if self.features is None and self.keep_features:
            core = sampling.base_model_of(self.accelerator.unwrap_model(model))
            with torch.no_grad(), self.accelerator.autocast():
                features = iter(self.family.tower_features(core, inputs))
            by_row = [[next(features) for _ in range(count)] for count in counts]
            return {**_token_inputs(inputs), "features": by_row}
        if self.features is not None:
            by_row = [[feature.to(model.device) for feature in self.features[i]] for i in faces]
            return {**inputs, "features": by_row}
        return inputs

    def _with_images(self, model: Any, batch: Mapping[str, Any]) -> Inputs:
        """A batch for the forward pass: features of a frozen tower pass through the projector."""
        inputs = dict(batch)
        features = inputs.pop("features", None)
        if features is not None:
            core = sampling.base_model_of(self.accelerator.unwrap_model(model))
            inputs |= self.family.inputs_from_features(
                core, [feature for row in features for feature in row]
            )
        return inputs

    def _rollouts(
        self, parts: Sequence[Sequence[int]], batches: Sequence[Inputs]
    ) -> list[sampling.Rollout]:
        # A seed depends on step and process only: a resumed run samples the same completions.
        position = (self.args.seed, self.state.global_step, self.accelerator.process_index)
        seeds = [hash((*position, part)) % 2**63 for part in range(len(parts))]
        if self.server is None:
            return [self._sample(batch, seed) for batch, seed in zip(batches, seeds, strict=True)]
        try:
            self._load_adapter(self.server)
            return [
                self.server.sample(
                    [row_images.image_refs(row) for row in rows],
                    rows["input_ids"],
                    self.group,
                    seed,
                    rows[encode.SOURCE_COLUMN] if encode.SOURCE_COLUMN in rows.features else None,
                )
                for rows, seed in zip(map(self.faces.select, parts), seeds, strict=True)
            ]
        except ServerGoneError as error:
            if self.state.global_step:
                self._save_checkpoint(self.model, trial=None)
            raise ServerGoneError(
                f"{error}. The {self.state.global_step} steps so far are kept: when the server "
                "answers again, rerun the same command to resume"
            ) from None

    def _load_adapter(self, server: VLLMRolloutServer) -> None:
        """Load the current adapter on the server."""
        step, model = self.state.global_step, self.accelerator.unwrap_model(self.model_wrapped)
        state = self.whole_state()
        if self.accelerator.is_main_process:
            model.save_pretrained(str(server.adapter_folder(step)), state_dict=state)
            server.load(step)
        self.accelerator.wait_for_everyone()
        server.use(step)

    @property
    def _sampling_options(self) -> sampling.SamplingOptions:
        return sampling.SamplingOptions(
            max_new_tokens=self.limit,
            stops=self.stops,
            temperature=self.temperature,
            top_p=self.rollout_top_p,
            never=self.never,
        )

    def _sample(self, batch: Inputs, seed: int) -> sampling.Rollout:
        generator = torch.Generator(self.accelerator.device).manual_seed(seed)
        trained: Any = self.model
        trained.eval()
        # The same precision as in training: otherwise another policy would be trained than the one
        # that samples.
        with (
            self.accelerator.autocast(),
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model,
        ):
            core: Any = model
            rollout = sampling.sample(
                core,
                self.family,
                self._with_images(core, batch),
                self._sampling_options,
                group=self.group,
                generator=generator,
            )
        trained.train()
        return rollout

    def _text(self, ids: Sequence[int]) -> str:
        tokenizer: Any = self.processing_class
        ends = set(self.stops)
        text_ids = [token for token in ids if token not in ends]
        return tokenizer.tokenizer.decode(text_ids, skip_special_tokens=True).strip()

    def _advantages(self, per_reward: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(advantages, weighted sums of rewards) of all processes' completions: a reward without a
        signal is not counted, and a completion without any has advantage 0."""
        rewards = (per_reward * self.reward_weights.to(per_reward.device)).nansum(1)
        rewards[per_reward.isnan().all(1)] = math.nan
        grouped = rewards.view(-1, self.group)
        centred = grouped - grouped.nanmean(1, keepdim=True)
        if self.scale_rewards != "none":
            over: Any = 1 if self.scale_rewards == "group" else (0, 1)
            counted = (~grouped.isnan()).sum(over, keepdim=True)
            spread = (centred.square().nansum(over, keepdim=True) / (counted - 1)).sqrt()
            centred = centred / (spread + 1e-4)
        return centred.flatten().nan_to_num(0.0), rewards

    @torch.no_grad()
    def _reference(self, entry: Inputs) -> torch.Tensor:
        """Log-probabilities of the completions before this training: of the reference model,
        without the adapter, or of TRL's copy of an earlier adapter."""
        wrapped: Any = self.model
        if self.ref_model is not None:
            log_probs, _ = self._score(self.ref_model, entry)
            return log_probs
        model = self.accelerator.unwrap_model(wrapped)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            log_probs, _ = self._score(wrapped, entry)
        return log_probs

    # --- the loss ---------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Inputs) -> torch.Tensor:
        self._shared = inputs
        loss = super()._compute_loss(model, inputs)
        if self.loss_type == "bnpo":
            # TRL divides by the tokens of this process; the mean over processes is the mean over
            # all tokens only if it divides by those of all processes.
            tokens = inputs["completion_mask"].sum().to(loss)
            loss = loss * tokens / self.accelerator.reduce(tokens, "mean")
        return loss

    def _get_per_token_logps_and_entropies(self, model: Any, *_: Any, **__: Any) -> Any:
        log_probs, entropies = self._score(model, self._shared)
        self._check_drift(log_probs.detach())
        return log_probs, entropies, None

    def _score(self, model: Any, entry: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = entry["completion_ids"], entry["completion_mask"]
        with self.accelerator.autocast():
            if self.args.gradient_checkpointing and torch.is_grad_enabled():
                full = self._full_conversations(entry)
                return sampling.score_without_cache(
                    model, self._with_images(model, full), ids, mask, self._sampling_options
                )
            shared = self._with_images(model, entry["shared"])
            return sampling.score(model, self.family, shared, ids, mask, self._sampling_options)

    def _full_conversations(self, entry: Inputs) -> Inputs:
        """A batch with a row for each completion, after its prompt."""
        size = self.group
        encoded = self.faces.select([row for row in entry["rows"] for _ in range(size)])
        if self.features is not None:
            encoded = row_images.drop_image_columns(encoded)
        rows = []
        for row, ids, mask in zip(
            encoded,
            entry["completion_ids"].tolist(),
            entry["completion_mask"].sum(1).tolist(),
            strict=True,
        ):
            conversation = [*row["input_ids"], *ids[:mask]]
            token_inputs = self.family.per_token_inputs(
                self.processing_class, conversation, len(row["input_ids"])
            )
            rows.append({**row, "input_ids": conversation, **token_inputs})
        batch = self.collate(rows)
        inputs: Inputs = encode.to_model(batch, self.model)
        if "features" in entry["shared"]:
            repeated = [row for row in entry["shared"]["features"] for _ in range(size)]
            return {**_token_inputs(inputs), "features": repeated}
        return inputs

    def _check_drift(self, log_probs: torch.Tensor) -> None:
        """Until the first update after a rollout, the log-probabilities must be those of the
        rollout: otherwise the trained policy is not the one that sampled."""
        entry = self._shared
        accumulated = self._step % ((self.args.steps_per_generation or 1) * self.num_iterations)
        is_unchanged = accumulated < self.args.gradient_accumulation_steps
        if not is_unchanged or self.rollout_top_p < 1:  # top_p changes the distribution
            return
        mask = entry["completion_mask"].bool()
        drift = (log_probs - entry["rollout_logps"])[mask].abs().mean().item()
        self._metrics["train"]["rollout_drift"].append(drift)
        if not drift <= self.max_logprob_drift:
            raise UserError(
                f"the trainer's log-probabilities differ from the rollout's by {drift:.4f} a token "
                f"on average (max_logprob_drift {self.max_logprob_drift}): the sampling model is "
                "not the one that is trained. Set lora_dropout to 0, look for a precision that "
                "differs, or raise max_logprob_drift"
            )

    # --- metrics ----------------------------------------------------------------------------------

    def _record(
        self,
        indices: Sequence[int],
        texts: Sequence[str],
        ids: Sequence[Sequence[int]],
        complete: Sequence[bool],
        per_reward: torch.Tensor,
        rewards: torch.Tensor,
        advantages: torch.Tensor,
        mine: slice,
    ) -> None:
        """Metrics of a generation batch (of all processes: rewards; of this one: texts)."""
        log, size = self._metrics["train"], self.group
        answers = [self.scorer.prompt.parse(text) for text in texts]
        for k, name in enumerate(self.reward_func_names):
            finite = per_reward[:, k][~per_reward[:, k].isnan()]
            log[f"rewards/{name}/mean"].append(finite.mean().item())
            log[f"rewards/{name}/std"].append(finite.std().item() if len(finite) > 1 else 0.0)
        grouped = rewards.view(-1, size)
        spread = grouped.max(1).values - grouped.min(1).values
        log["reward"].append(rewards.nanmean().item())
        log["frac_reward_zero_std"].append((spread < 1e-6).float().mean().item())
        log["completions/mean_length"].append(sum(map(len, ids)) / len(ids))
        log["completions/clipped_ratio"].append(1 - sum(complete) / len(complete))
        for status, count in Counter(answer.status for answer in answers).items():
            log[f"status/{status}"].append(count / len(answers))
        by_label: defaultdict[str, list[float]] = defaultdict(list)
        for i, value in zip(indices, rewards[mine].tolist(), strict=True):
            labels = self.scorer.prompt.target_labels(self.scorer.samples[i])
            for label in labels or ("unlabelled",):
                by_label[label].append(value)
        for label, label_rewards in by_label.items():
            log[f"reward_of/{label}"].append(sum(label_rewards) / len(label_rewards))
        label_counts = Counter(label for answer in answers for label in answer.labels)
        log["top_label_share"].append(max(label_counts.values(), default=0) / len(answers))
        self._truncated_batches = 0 if any(complete) else self._truncated_batches + 1
        if self._truncated_batches >= _MAX_TRUNCATED:
            raise UserError(
                f"all completions of the last {_MAX_TRUNCATED} generation batches were truncated "
                f"at max_new_tokens {self.limit}: raise it, or start from a model that ends its "
                "answers"
            )
        names = self.reward_func_names
        values: Any = per_reward[mine].tolist()
        own_advantages = advantages[mine].tolist()
        self.groups = [
            Group(
                indices[k],
                list(texts[k : k + size]),
                answers[k : k + size],
                own_advantages[k : k + size],
                {
                    name: [None if math.isnan(row[j]) else row[j] for row in values[k : k + size]]
                    for j, name in enumerate(names)
                },
            )
            for k in range(0, len(texts), size)
        ]


def _token_inputs(batch: Mapping[str, Any]) -> Inputs:
    """The inputs for each token: all but the images."""
    shape = batch["input_ids"].shape
    return {name: tensor for name, tensor in batch.items() if tensor.shape == shape}
