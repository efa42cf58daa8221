"""Seconds a step of GRPO: ours against TRL's GRPOTrainer. The same LLaVA-shaped model of at least
50 M random weights (a picture is 576 tokens, as in LLaVA-1.5), LoRA, G = 8, in-process rollouts,
float32, on a CPU.

    python tests/perf/grpo_vs_trl.py [--repeats 5] [--steps 2] [--json FILE]

Both sides answer the same faces with exactly the same number of tokens (nothing ends an answer
early). First the policy-gradient loss of one step on fixed completions and advantages is computed
by both: it must be equal to 1e-4. Then whole runs alternate, each in a process of its own; the
median of the pairs' ratios counts.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

GROUP, FACES, TOKENS = 8, 1, 64


def build(folder: Path, small: bool) -> None:
    from helpers.checkpoints import llava_sizes

    from vlmface import families, prompts

    corpus = [str(prompts.load("face_cot").messages()), "USER: ASSISTANT:"] * 20
    sizes = llava_sizes(336, vision=(384, 8), language=(576, 10, 1536))
    if small:
        sizes = llava_sizes(56, vision=(64, 2), language=(64, 2, 128))
    families.get("llava").build_tiny(folder, corpus, **sizes)


def model_of(folder: Path) -> Any:
    import torch
    from helpers.checkpoints import llava

    torch.manual_seed(0)
    return llava.load_model(folder, dtype=torch.float32)


def length_reward(completions: Any, **_: Any) -> list[float]:
    """Something that differs within a group, for either side alike."""
    return [float(len(one[0]["content"]) % 7) for one in completions]


def arguments(out: str, steps: int, gpu: bool) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=out,
        max_steps=steps,
        num_generations=GROUP,
        per_device_train_batch_size=GROUP * FACES,
        max_completion_length=TOKENS,
        beta=0.0,
        temperature=1.0,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        bf16=gpu,
        use_cpu=not gpu,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        seed=0,
        loss_type="grpo",
        remove_unused_columns=False,
        disable_dropout=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )


def trainer_of(side: str, folder: Path, model: Any, out: str, steps: int) -> Any:
    """A trainer of the model, by the processor in `folder`, for so many steps."""
    from datasets import Dataset, Image, concatenate_datasets
    from helpers.checkpoints import llava
    from helpers.samples import rows
    from peft import LoraConfig

    from vlmface import prompts

    lora = LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)",
    )
    processor, prompt = llava.load_processor(folder), prompts.load("face_cot")
    faces, gpu = rows(FACES * steps), model.device.type == "cuda"
    if side == "trl":
        from trl import GRPOTrainer

        question = prompt.messages()[-1]["content"][-1]["text"]
        asked = Dataset.from_dict(
            {"prompt": [[{"role": "user", "content": question}]] * len(faces)}
        )
        images = faces.select_columns(["image"]).cast_column("image", Image(decode=True))
        data = concatenate_datasets([asked, images], axis=1)
        args = arguments(out, steps, gpu)
        # No answer ends early: the limit decides on both sides.
        args.generation_kwargs = {
            "eos_token_id": -1,
            "suppress_tokens": [processor.tokenizer.eos_token_id, processor.image_token_id],
        }
        return GRPOTrainer(
            model=model,
            args=args,
            reward_funcs=[length_reward],
            train_dataset=data,
            processing_class=processor,
            peft_config=lora,
        )
    from vlmface.schema import FaceSample
    from vlmface.train import grpo, rewards
    from vlmface.train.group_trainer import GroupTrainer

    start = grpo.Start(
        base=folder,
        base_id=str(folder),
        family=llava,
        processor=processor,
        prompt=prompt,
        trainable={},
        max_length=1024,
        views=None,
        num_frames=1,
        run=None,
    )
    used = rewards.parse({"format": 1})
    encoded, samples, _ = grpo.encode_prompts(faces, start, used, TOKENS)
    scorer = rewards.RewardScorer(used, list[FaceSample](samples), prompt)
    trainer = GroupTrainer(
        model=model,
        args=arguments(out, steps, gpu),
        reward_funcs=[length_reward],
        train_dataset=Dataset.from_dict(
            {
                "prompt": [[{"role": "user", "content": "?"}]] * len(faces),
                "index": list(range(len(faces))),
            }
        ),
        processing_class=processor,
        peft_config=lora,
        family=llava,
        faces=encoded,
        scorer=scorer,
        stops=[],
        top_p=1.0,
        max_logprob_drift=0.05,
        keep_features=True,
    )
    trainer.never = [processor.tokenizer.eos_token_id, processor.image_token_id]
    trainer._truncated_batches = -(10**9)  # answers are cut on purpose
    return trainer


def timed(side: str, folder: Path, model: Any, steps: int) -> dict[str, Any]:
    """Seconds a step, and tokens an answer; the first step warms up and is not counted. The model
    is left as it came, without an adapter."""
    with tempfile.TemporaryDirectory() as out:
        trainer = trainer_of(side, folder, model, out, steps + 1)
        marks: list[float] = []
        original = trainer.training_step

        def timed(*args: Any, **kwargs: Any) -> Any:
            marks.append(time.perf_counter())
            return original(*args, **kwargs)

        trainer.training_step = timed
        trainer.train()
        marks.append(time.perf_counter())
        lengths = [
            line["completions/mean_length"]
            for line in trainer.state.log_history
            if "completions/mean_length" in line
        ]
        trainer.model.unload()
    # Rollouts happen inside of training_step, before the loss.
    return {"s_per_step": (marks[-1] - marks[1]) / steps, "tokens": lengths}


def run(side: str, folder: Path, steps: int, tokens: int) -> dict[str, Any]:
    """Time one side in this process."""
    global TOKENS
    TOKENS = tokens
    return timed(side, folder, model_of(folder), steps)


def equal_loss(folder: Path) -> dict[str, float]:
    """The loss of one step on the same completions and advantages, by either trainer."""
    import torch

    found = {}
    torch.manual_seed(1)
    ids = torch.randint(100, 250, (GROUP * FACES, TOKENS))
    advantages = torch.randn(GROUP * FACES)
    old = None
    for side in ("ours", "trl"):
        with tempfile.TemporaryDirectory() as out:
            trainer = trainer_of(side, folder, model_of(folder), out, 1)
            trainer.model.train()
            batch = next(iter(trainer.get_train_dataloader()))
            if side == "ours":
                shared = trainer._prompts([row["index"] for row in batch][::GROUP])
                prompt_ids = shared["input_ids"].repeat_interleave(GROUP, 0)
                inputs: dict[str, Any] = {"shared": shared, "rollout_logps": torch.zeros(ids.shape)}
                trainer.max_logprob_drift = float("inf")
                trainer.never = []
            else:
                text = trainer.processing_class.apply_chat_template(
                    [
                        [
                            {
                                "role": "user",
                                "content": [
                                    {"type": "image"},
                                    {"type": "text", "text": batch[0]["prompt"][0]["content"]},
                                ],
                            }
                        ]
                    ]
                    * len(batch),
                    add_generation_prompt=True,
                )
                read = trainer.processing_class(
                    text=text, images=[[row["image"]] for row in batch], return_tensors="pt"
                )
                prompt_ids = read["input_ids"]
                inputs = {"pixel_values": read["pixel_values"], "num_images": [1] * len(batch)}
            inputs |= {
                "prompt_ids": prompt_ids,
                "prompt_mask": torch.ones_like(prompt_ids),
                "completion_ids": ids,
                "completion_mask": torch.ones_like(ids),
                "advantages": advantages,
                "num_items_in_batch": torch.tensor(ids.numel()),
            }
            # Against fixed older log-probabilities: an on-policy loss is 0 whatever is computed.
            if old is None:
                trainer._shared = inputs
                with torch.no_grad():
                    old = trainer._score(trainer.model, inputs)[0]
                old = old + 0.1 * torch.randn(old.shape)
            inputs["old_per_token_logps"] = old
            trainer.current_gradient_accumulation_steps = 1
            loss = trainer._compute_loss(trainer.model, inputs)
            loss.backward()
            norm = torch.stack(
                [p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]
            ).norm()
            found[side] = loss.item()
            found[f"{side}_gradient"] = norm.item()
            found["prompt_tokens"] = prompt_ids.shape[1]
    return found


def main() -> None:
    global TOKENS
    parser = harness.parser(__doc__)
    parser.add_argument("--steps", type=int, default=2)
    words = parser.parse_args()
    if words.small:
        TOKENS, words.repeats, words.steps = 8, 1, 1
    with tempfile.TemporaryDirectory() as name:
        build(Path(name), words.small)
        losses = equal_loss(Path(name))
        print(json.dumps(losses))
        assert abs(losses["ours"] - losses["trl"]) < 1e-4
        runs: dict[str, list[dict[str, Any]]] = {"trl": [], "ours": []}
        for _ in range(words.repeats):
            for side, done in runs.items():
                done.append(harness.in_process(run, side, Path(name), words.steps, TOKENS))
                print(side, done[-1], flush=True)
    pairs = list(zip(runs["trl"], runs["ours"], strict=True))
    ratio = statistics.median(a["s_per_step"] / b["s_per_step"] for a, b in pairs)
    seconds = {
        side: statistics.median(run["s_per_step"] for run in done) for side, done in runs.items()
    }
    print(f"s/step: TRL {seconds['trl']:.2f}, ours {seconds['ours']:.2f}; median ratio {ratio:.2f}")
    harness.write(words.json, "grpo_vs_trl", ratio={"s_per_step": ratio}, runs=runs, equal=losses)


if __name__ == "__main__":
    main()
