"""Measures the memory of a train step of GPT-2, full and with adapters, by the compiler's analysis.

Nothing is run and no parameter is made: arrays are described, the step is compiled for them.
"""

import dataclasses
from dataclasses import field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import Mesh

from genai_jax.models import lm
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import add_lora, count_trained, is_adapter
from genai_jax.nn.config import Dtype, TransformerConfig
from genai_jax.nn.linear import quantize_linears
from genai_jax.nn.lora import LoraConfig
from genai_jax.objectives.next_token import next_token
from genai_jax.parallel.mesh import make_mesh
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.partition import Trains, trainable
from genai_jax.training.schedules import ScheduleConfig, make_schedule
from genai_jax.training.state import TrainState
from genai_jax.training.step import make_train_step
from genai_jax.types import Batch

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to compile.

    Attributes:
        rows: Rows of a batch.
        length: Tokens of a row.
        layers: How layers are held: unrolled or scanned.
        dtype: Type of the activations.
        lora: The adapters.
    """

    rows: int = 1
    length: int = 512
    layers: Literal["unrolled", "scanned"] = "scanned"
    dtype: Dtype = "float32"
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a compiled step holds, in bytes.

    Attributes:
        arguments: The state and the batch.
        temporaries: What is made in between.
        aliased: Of the results, what takes the place of arguments.
        trained: Parameters that train.
    """

    arguments: int
    temporaries: int
    aliased: int
    trained: int

    @property
    def needed(self) -> int:
        """Arguments and temporaries."""
        return self.arguments + self.temporaries


def measure(
    shape: TransformerConfig,
    mesh: Mesh,
    rows: int,
    length: int,
    lora: LoraConfig | None = None,
    *,
    quantized: bool = False,
) -> Memory:
    """Compile a train step on descriptions of its arrays.

    Args:
        shape: Of the model.
        mesh: The devices.
        rows: B.
        length: T.
        lora: Adapters that train; None trains all.
        quantized: Whether the frozen kernels are of 8-bit integers.
    """

    def init_model() -> LanguageModel:
        model = LanguageModel(shape, jax.random.key(0))
        model = quantize_linears(model) if quantized else model
        return model if lora is None else add_lora(model, lora, jax.random.key(1))

    trains: Trains = None if lora is None else is_adapter
    optimizer = make_optimizer(
        OptimizerConfig(),
        make_schedule(ScheduleConfig(peak=1e-4), 1000),
        decays=lm.decays,
        muon=lm.hidden_matrix,
        mesh=mesh,
    )

    def init() -> TrainState:
        model = init_model()
        return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(trainable(model, trains)))

    one = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), jax.eval_shape(init)
    )
    row = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    batch: Batch = {"tokens": row, "targets": row, "loss_mask": row}
    step = make_train_step(next_token, optimizer, mesh, state, seed=0, trains=trains)
    jitted: Any = step.on_leaves
    said = jitted.lower(step.leaves(state), batch).compile().memory_analysis()
    return Memory(
        said.argument_size_in_bytes,
        said.temp_size_in_bytes,
        said.alias_size_in_bytes,
        count_trained(state.model, trains or (lambda name: True))[0],
    )


def main() -> int:
    """Compile the steps and print what each holds."""
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    shape = replace(lm.GPT2_124M, remat="full", layers=config.layers, dtype=config.dtype)
    mesh = make_mesh(devices=jax.devices()[:1])
    base = lm.count_parameters(shape)
    forms: dict[str, Memory] = {}
    forms["full fine-tuning"] = measure(shape, mesh, config.rows, config.length)
    for name, lora, quantized in (
        ("LoRA", config.lora, False),
        ("DoRA", replace(config.lora, dora=True), False),
        ("LoRA on 8-bit kernels", config.lora, True),
    ):
        forms[name] = measure(shape, mesh, config.rows, config.length, lora, quantized=quantized)
    full = forms["full fine-tuning"].needed
    print(f"{'MiB':24} {'arguments':>9} {'temporaries':>11} {'aliased':>8} {'sum':>7} {'ratio':>6}")
    for name, memory in forms.items():
        print(
            f"{name:24} {memory.arguments / MIB:9,.0f} {memory.temporaries / MIB:11,.0f} "
            f"{memory.aliased / MIB:8,.0f} {memory.needed / MIB:7,.0f} "
            f"{memory.needed / full:6.1%}   {memory.trained:,} parameters train, "
            f"{memory.trained / base:.2%} of the model's"
        )
    return 0


if __name__ == "__main__":
    main()
