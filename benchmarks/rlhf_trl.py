"""TRL's side of `rlhf.py`: an iteration of its PPO trainer, and how long each part takes.

What it calls says how far it is: PyTorch's hooks take the time.
"""

import copy
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.rlhf import IDS, about, make_prompts, parts_file

if TYPE_CHECKING:
    from benchmarks.rlhf import BenchmarkConfig
    from benchmarks.side_by_side import Call


def make_trainer(config: "BenchmarkConfig", folder: str, *, compiled: bool) -> Any:
    """Make TRL's trainer of four small GPT-2s with random weights."""
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}
    import datasets
    import tokenizers
    import torch
    import transformers
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from genai_jax.parallel.cpu_devices import usable_cores

    torch.set_num_threads(usable_cores())
    settings = transformers.GPT2Config(
        vocab_size=IDS + 1,
        n_positions=config.length,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        bos_token_id=IDS,
        eos_token_id=IDS,
        pad_token_id=IDS,
    )
    settings.num_labels = 1
    policy: Any = transformers.GPT2LMHeadModel(settings)
    reference = copy.deepcopy(policy)
    value: Any = transformers.GPT2ForSequenceClassification(settings)
    reward: Any = transformers.GPT2ForSequenceClassification(settings)
    words = {str(i): i for i in range(IDS)} | {"<end>": IDS}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words)),
        pad_token="<end>",
        eos_token="<end>",
    )
    options = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=config.answers,
        gradient_accumulation_steps=1,
        num_mini_batches=config.minibatches,
        num_ppo_epochs=config.epochs,
        local_rollout_forward_batch_size=config.answers,
        response_length=config.tokens,
        total_episodes=config.answers,
        temperature=1.0,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        num_sample_generations=0,
        gradient_checkpointing=False,  # it would save memory, for time
        torch_compile=compiled,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        options,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=datasets.Dataset.from_dict({"input_ids": make_prompts(config).tolist()}),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def make_trl(config: "BenchmarkConfig", folder: str, *, compiled: bool) -> "tuple[Call, str]":
    """Make one iteration of the trainer's loop a call."""
    from genai_jax.training.json_lines import JsonLines

    trainer = make_trainer(config, folder, compiled=compiled)
    reference, reward = trainer.ref_model, trainer.reward_model
    clock: dict[str, float] = {}
    counted: dict[str, int] = {"drawn": 0, "learned": 0}

    def arrive(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            clock.setdefault(name, time.perf_counter())

        return note

    def count(name: str) -> Callable[..., None]:
        def of(module: Any, arguments: Any, options: dict[str, Any]) -> None:
            rows, length = options["input_ids"].shape
            counted[name] += rows * (length - config.prompt)

        return of

    reference.register_forward_pre_hook(arrive("scored"))
    reward.transformer.register_forward_pre_hook(arrive("judged"))
    reward.transformer.register_forward_pre_hook(count("drawn"), with_kwargs=True)
    reward.transformer.register_forward_hook(arrive("judged already"))
    trainer.model.register_forward_pre_hook(arrive("learned"))
    trainer.model.register_forward_pre_hook(count("learned"), with_kwargs=True)
    name = "TRL compiled" if compiled else "TRL"
    parts = JsonLines(parts_file(folder, name))

    def call() -> float:
        clock.clear()
        began = time.perf_counter()
        trainer.train()
        reward = clock["judged already"] - clock["judged"]
        parts.append(
            {
                "rollout": clock["scored"] - began,
                "reward": reward,
                "scoring": clock["learned"] - clock["scored"] - reward,
                "update": time.perf_counter() - clock["learned"],
            }
        )
        return float(trainer.state.log_history[-1]["loss/policy_avg"])

    call()
    (updates,) = {int(x["step"]) for x in trainer.optimizer.state.values()}
    learning = trainer.accelerator.unwrap_model(trainer.model)
    models = (learning.policy, reference, learning.value_model, reward)
    size = sum(p.numel() for model in models for p in model.parameters())
    return call, about(config, counted["drawn"], updates, counted["learned"], size)
