"""The image experiments as users run them: through `main`, on tiny sizes, on eight devices."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest

from experiments import image_classifier, image_diffusion, image_evaluate
from genai_jax.data.image_rows import levels_to_float
from genai_jax.data.images import ImageConfig, load_images
from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.sampling import SamplerConfig
from genai_jax.evaluation.classes import make_predict
from genai_jax.evaluation.image_likelihood import BoundConfig
from genai_jax.evaluation.image_runs import fit_network, load_classifier
from genai_jax.models.classifier import Classifier, count_parameters
from genai_jax.models.unet import UNet
from genai_jax.models.unet_config import UNetConfig
from genai_jax.training.checkpoints import Checkpoints
from genai_jax.training.run_directory import open_run
from genai_jax.training.state import TrainState

JUDGE = (
    *("--steps", "60", "--batch-size", "64", "--evaluation-rows", "64", "--label-smoothing", "0"),
    *("--model.widths", "8", "8", "--model.feature-dim", "8"),
    *("--schedule.peak", "0.02", "--schedule.warmup-steps", "2", "--model.dropout", "0"),
    *("--evaluate-every", "30", "--save-every", "30", "--log-every", "30"),
)
DRAWER = image_diffusion.ImageDiffusionConfig(
    workdir="",
    network=UNetConfig(
        width=8, multipliers=(1,), num_res_blocks=1, groups=4, attention_resolutions=()
    ),
    diffusion=Diffusion(Process("cosine", num_steps=1000), "v"),
    sampler=SamplerConfig(num_steps=2),
    bound=BoundConfig(num_steps=4, evaluations=2, images=16),
)
MEASURES = (
    *("--held-out", "24", "--train", "200", "--draws", "2", "--batch-size", "24"),
    *("--guidance-scales", "1", "2", "--compared-solvers", "ddim", "heun"),
    *("--compared-steps", "1", "2", "--compared-draws", "2", "--no-densities"),
)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A classifier that has barely begun to learn."""
    workdir = tmp_path_factory.mktemp("runs") / "judge"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["image_classifier.py", *JUDGE, "--workdir", str(workdir)])
        assert image_classifier.main() == 0
    return workdir


@pytest.mark.parametrize("name", image_classifier.PRESETS)
def test_classifier_presets_fit_together(name):
    config = image_classifier.PRESETS[name][1]
    assert config.workdir == f"runs/{name}-classifier"
    assert config.batch_size % 2 == config.evaluation_rows % 2 == 0
    size = 8 if name == "digits" else 32
    shape = image_classifier.fit_model(config.model, (size, size, 3), [("a", "b")] * 10)
    assert count_parameters(shape) > 100_000


def test_a_classifier_leaves_what_it_promises(judge):
    records = [json.loads(line) for line in (judge / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "train/loss" in r] == list(range(1, 61))
    validated = [r for r in records if "val/loss" in r]
    assert [r["step"] for r in validated] == [30, 60]
    assert validated[1]["val/accuracy"] > 0.7  # of ten classes, after three epochs
    report = (judge / "samples" / "report.txt").read_text()
    assert "359 images, seen once" in report
    assert "accuracy:" in report
    assert (judge / "samples" / "mistakes.png").read_bytes().startswith(b"\x89PNG")
    assert (judge / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_says_what_the_classifier_came_to(judge, run):
    before = (judge / "metrics.jsonl").read_bytes()
    code, out, _ = run(image_classifier, *JUDGE, "--workdir", str(judge))
    assert code == 0
    assert "is finished: 60 steps" in out
    assert "accuracy:" in out
    assert (judge / "metrics.jsonl").read_bytes() == before
    code, _, err = run(image_classifier, *JUDGE, "--workdir", str(judge), "--shift", "2")
    assert code == 2
    assert "shift: 1 -> 2" in err


def test_a_loaded_classifier_is_the_one_that_was_reported(judge):
    model, shape, step = load_classifier(str(judge))
    assert step == 60
    assert shape.heads == (10,)
    data = load_images(ImageConfig(), seed=0)
    images = levels_to_float(data.levels_of("test"), data.levels)
    predict = make_predict(Classifier.__call__, model)
    right = int(np.sum(predict(images)[:, 0] == data.field_of("test", "label")))
    assert f"({right:,} of 359 images)" in (judge / "samples" / "report.txt").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--batch-size", "12"), "`batch_size` must be divisible by devices"),
        (("--batch-size", "1600"), "must hold at least a batch; got 1258 images"),
        (("--model.widths", "8", "8", "8", "8", "8"), "`image_size` must be halved once"),
        (("--model.channels", "3"), "Images must be 8 × 8 × 3"),
        (("--shift", "-1"), "`shift` must not be negative"),
        (("--data.source", "digit"), "digits"),
    ],
    ids=["devices", "batch", "halvings", "channels", "shift", "source"],
)
def test_what_a_classifier_cannot_be_trained_on_is_refused(run, tmp_path, flags, words):
    code, out, err = run(image_classifier, *JUDGE, "--workdir", str(tmp_path / "run"), *flags)
    assert code == 2
    assert words in err + out


@pytest.fixture(scope="module")
def drawer(tmp_path_factory):
    """The run of a diffusion model that has not learnt to draw: saved before its first step."""
    data = load_images(DRAWER.data, seed=0)
    config = dataclasses.replace(DRAWER, network=fit_network(DRAWER.network, data, "label"))
    with open_run(tmp_path_factory.mktemp("runs") / "drawer", config) as run:
        run.require_identity({"data": data.content_digest})
        model = jax.jit(lambda key: UNet(config.network, key))(jax.random.key(0))
        with Checkpoints(run.folder("checkpoints")) as checkpoints:
            assert checkpoints.save(0, TrainState(0, model, None, ema=model))
    return run.path


def test_an_evaluation_measures_all_that_it_was_asked_for(run, drawer, judge):
    flags = ("--run", str(drawer), "--classifier", str(judge), *MEASURES, "--ode-images", "4")
    code, out, err = run(image_evaluate, *flags)
    assert code == 0, err
    text = (drawer / "samples" / "evaluation_test.txt").read_text()
    assert text.strip() in out
    assert "the test split, 24 images; nearness to 200 training images" in text
    assert "2 of 24 images for each column, seeds 0 to 1" in text
    assert "samples, w=2: fails " in text  # it has not learnt anything
    assert "one Gaussian: " in text
    assert "training copied: fails " in text
    assert "bits per dimension of 24 images of the test split" in text
    assert "bits per dimension of 4 images of the test split, dequantised uniformly" in text
    assert "2 draws of 24 images against the test split" in text
    values = json.loads((drawer / "samples" / "evaluation_test.json").read_text())
    assert values["ode"]["images"] == 4
    assert list(values["columns"]) == [
        *("training images", "samples, w=1", "samples, w=2"),
        *("one Gaussian", "class Gaussians", "training copied"),
    ]
    assert "close" in values["columns"]["training copied"]["fails"]
    assert np.shape(values["solvers"]["distances"]["heun"]) == (2, 2)
    assert values["solvers"]["evaluations"] == {"ddim": [1, 2], "heun": [1, 3]}
    for picture in ("samples/nearest_w1.png", "samples/nearest_w2.png", "plots/solvers.png"):
        assert (drawer / picture).read_bytes().startswith(b"\x89PNG")


def test_a_draw_is_a_function_of_its_seed(run, drawer, judge, tmp_path):
    """Measured as the second of two in the test above, and here as the first of one."""
    other = shutil.copytree(drawer, tmp_path / "other")
    where = ("--run", str(other), "--classifier", str(judge))
    more = ("--draws", "1", "--seed", "1", "--guidance-scales", "2", "--no-bits")
    code, _, err = run(image_evaluate, *where, *MEASURES, *more, "--compared-solvers")
    assert code == 0, err
    one, two = (
        json.loads((folder / "samples" / "evaluation_test.json").read_text())["columns"]
        for folder in (other, drawer)
    )
    for name in ("training images", "samples, w=2", "one Gaussian"):
        assert one[name]["draws"][0] == two[name]["draws"][1]
    assert two["samples, w=2"]["draws"][0] != two["samples, w=2"]["draws"][1]


def test_an_evaluation_without_a_judge_says_how_to_train_one(run, drawer, judge, tmp_path):
    missing = str(tmp_path / "none")
    code, _, err = run(image_evaluate, "--run", str(drawer), "--classifier", missing)
    assert code == 2
    assert f"python experiments/image_classifier.py digits --workdir {missing}" in err
    code, _, err = run(image_evaluate, "--run", str(judge), "--classifier", str(judge))
    assert code == 2
    assert "must be a run of image_diffusion.py" in err
    other = shutil.copytree(drawer, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["identity"]["data"] = "0" * 64
    (other / "config.json").write_text(json.dumps(config))
    code, _, err = run(image_evaluate, "--run", str(other), "--classifier", str(judge))
    assert code == 2
    assert "measured by the images that it was trained on" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--draws", "0"), "`draws` must be at least 1; got 0"),
        (("--held-out", "3"), "`held_out` must be at least 4"),
        (("--ode-images", "1"), "`ode_images` must be 0 or at least 2; got 1"),
        (("--num-steps", "-1"), "must not be negative"),
        (("--num-steps", "2000"), "`num_steps` must not exceed those of a discrete process"),
    ],
    ids=["draws", "held-out", "ode", "negative", "steps"],
)
def test_what_cannot_be_measured_is_refused(run, drawer, judge, flags, words):
    where = ("--run", str(drawer), "--classifier", str(judge))
    code, out, err = run(image_evaluate, *where, *MEASURES, "--no-bits", *flags)
    assert code == 2
    assert " ".join(words.split()) in " ".join((err + out).split())
