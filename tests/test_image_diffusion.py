"""Training and sampling of diffusion models as users run them: `main`, tiny, on eight devices."""

import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest

from experiments import image_classifier, image_diffusion, image_evaluate, image_sample
from genai_jax.data import captioned_shapes
from genai_jax.evaluation.image_runs import load_diffusion_run
from genai_jax.training.checkpoints import read_manifest

STEPS = 4
TINY = (
    *("--steps", str(STEPS), "--batch-size", "16", "--save-every", "2", "--log-every", "2"),
    *("--network.width", "8", "--network.multipliers", "1", "--network.num-res-blocks", "1"),
    *("--network.groups", "4", "--network.attention-resolutions", "8", "--evaluate-every", "2"),
    *("--evaluation-rows", "64", "--sample-images", "20", "--sampler.num-steps", "2"),
    *("--judge", "", "--bound.images", "16", "--bound.evaluations", "2"),
    *("--ema-traces", "0.05", "0.1", "--snapshot-every", "1"),
)
TINY_SHAPES = (
    *("shapes", "--steps", "2", "--batch-size", "8", "--save-every", "2", "--log-every", "1"),
    *("--network.transformer.num-layers", "1", "--network.transformer.embed-dim", "16"),
    *("--network.transformer.num-heads", "2", "--network.text.num-layers", "1"),
    *("--network.text.embed-dim", "16", "--network.text.num-heads", "2"),
    *("--data.num-shapes", "64", "--sample-images", "8", "--sampler.num-steps", "2"),
    *("--bound.images", "8", "--bound.evaluations", "1", "--bound.num-steps", "2"),
)
TINY_JUDGE = (
    *("shapes", "--steps", "2", "--batch-size", "8", "--data.num-shapes", "64"),
    *("--model.widths", "8", "8", "--model.feature-dim", "8", "--log-every", "1"),
)


@pytest.fixture(scope="module", autouse=True)
def few_held_out_shapes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioned_shapes, "NUM_VALIDATION", 64)
        patch.setattr(captioned_shapes, "NUM_TEST", 64)
        yield


def train(*flags, script=image_diffusion):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__name__, *map(str, flags)])
        assert script.main() == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    train(*TINY, "--workdir", workdir)
    return workdir


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A run that was told captions."""
    workdir = tmp_path_factory.mktemp("runs") / "shapes"
    train(*TINY_SHAPES, "--workdir", workdir)
    return workdir


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG")


def same_parameters(one, other):
    """Whether two runs have equal parameters, as they are sampled from."""
    models = [load_diffusion_run(str(run)).model for run in (one, other)]
    leaves = [jax.tree.leaves(model) for model in models]
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


@pytest.mark.parametrize("name", image_diffusion.PRESETS)
def test_presets_fit_together(name):
    config = image_diffusion.PRESETS[name][1]
    assert config.workdir == f"runs/{name}"
    assert config.batch_size % 2 == config.evaluation_rows % 2 == 0
    config.sampler.check(config.diffusion, conditional=config.condition != "none")


def test_a_run_leaves_what_it_promises(finished):
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2, 3, 4]
    validated = [r for r in records if "val/loss" in r]
    assert [r["step"] for r in validated] == [2, 4]
    # It begins by saying zero of a v whose variance is that of noise and data: about one.
    assert 0.5 < records[0]["train/loss"] < 2
    report = (finished / "samples" / "report.txt").read_text()
    assert "bits per dimension" in report
    assert "(16 of the test split, discretised bins)" in report
    for picture in ("samples/00000002.png", "samples/00000004.png", "plots/loss.png"):
        assert is_picture(finished / picture)


def test_the_same_command_says_what_the_run_came_to(finished, run):
    before = (finished / "metrics.jsonl").read_bytes()
    code, out, _ = run(image_diffusion, *TINY, "--workdir", str(finished))
    assert code == 0
    assert "is finished: 4 steps" in out
    assert (finished / "samples" / "report.txt").read_text().strip() in out
    assert (finished / "metrics.jsonl").read_bytes() == before
    code, _, err = run(image_diffusion, *TINY, "--workdir", str(finished), "--flip")
    assert code == 2
    assert "flip: False -> True" in err
    other_split = ("--data.test-fraction", "0.3")
    code, _, err = run(image_diffusion, *TINY, "--workdir", str(finished), *other_split)
    assert code == 2
    assert "data.test_fraction: 0.2 -> 0.3" in err


def test_a_run_that_lost_its_end_ends_alike(finished, run, tmp_path):
    other = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(other / "checkpoints" / str(STEPS))
    (other / "samples" / "report.txt").unlink()
    code, out, err = run(image_diffusion, *TINY, "--workdir", str(other))
    assert code == 0, err
    assert "after step 2" in out
    assert (other / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    arrays = [
        read_manifest(path / "checkpoints" / str(STEPS))["arrays"] for path in (finished, other)
    ]
    assert arrays[0] == arrays[1]
    picture = "samples/00000004.png"
    assert (other / picture).read_bytes() == (finished / picture).read_bytes()
    reports = [
        (path / "samples" / "report.txt").read_text().replace(str(path), "DIR")
        for path in (finished, other)
    ]
    assert reports[0] == reports[1]


def test_a_run_begins_where_another_ended(finished, run, tmp_path):
    """A step of (almost) no length changes (almost) nothing, and the average follows at once."""
    other = tmp_path / "continued"
    flags = ("--steps", "1", "--schedule.peak", "1e-30", "--ema-decay", "0", "--init")
    code, _, err = run(image_diffusion, *TINY, *flags, str(finished), "--workdir", str(other))
    assert code == 0, err
    assert same_parameters(finished, other)
    missing = tmp_path / "missing"
    code, _, err = run(
        image_diffusion, *TINY, "--init", str(missing), "--workdir", str(tmp_path / "x")
    )
    assert code == 2
    assert f"a run has a config.json; there is none in {missing}" in err


def test_settings_are_drawn_side_by_side(finished, run):
    where = ("--run", str(finished), "--count", "8")
    code, out, err = run(
        image_sample, *where, "--num-steps", "1", "3", "--guidance-scale", "1", "2"
    )
    assert code == 0, err
    assert out.count("8 images") == 4
    for steps in (1, 3):
        for scale in (1, 2):
            assert is_picture(finished / "samples" / f"drawn-{steps}-steps-w{scale}.png")
    for solver in ("ancestral", "euler", "heun", "dpm_solver_2m"):
        code, out, err = run(image_sample, *where, "--solver", solver, "--labels", "3", "7")
        assert code == 0, err
        assert solver in out


def test_a_picture_is_a_function_of_its_seed(finished, run, tmp_path):
    def picture(*flags):
        out = tmp_path / "drawn.png"
        where = ("--run", str(finished), "--count", "8", "--out", str(out))
        code, _, err = run(image_sample, *where, *flags)
        assert code == 0, err
        return out.read_bytes()

    first = picture()
    assert picture() == first
    assert picture("--seed", "1") != first
    assert picture("--frames", "2") != first
    averaged = picture("--ema-sigma-rel", "0.07")
    assert averaged != picture("--ema-sigma-rel", "0.14")
    # What guides is the difference to the weaker model: to itself there is none.
    alone = picture("--guidance-scale", "1")
    assert picture("--guidance-scale", "3") != alone
    assert picture("--guidance-scale", "3", "--weaker", str(finished)) == alone


def test_captions_are_drawn_and_judged(shapes, run, tmp_path):
    code, _, err = run(
        image_sample, "--run", str(shapes), "--count", "8", "--prompts", "a small red circle"
    )
    assert code == 0, err
    assert is_picture(shapes / "samples" / "drawn.png")
    judge = tmp_path / "judge"
    train(*TINY_JUDGE, "--workdir", judge, script=image_classifier)
    code, out, err = run(
        *(image_evaluate, "--run", str(shapes), "--classifier", str(judge), "--held-out", "16"),
        *("--train", "32", "--draws", "1", "--batch-size", "16", "--guidance-scales", "2"),
        *("--no-bits", "--compared-solvers"),
    )
    assert code == 0, err
    assert "attributes of the first draw, w=2" in out
    for attribute in ("shape", "colour", "size", "all of it"):
        assert re.search(rf"^{attribute}: +\d+\.\d+% ", out, re.MULTILINE)


REFUSED_SAMPLES = {
    "label": (("--labels", "10"), "must be classes 0 to 9 of the model; got 10"),
    "prompt": (("--prompts", "a red circle"), "`prompts` need a model that is told them"),
    "no steps": (("--num-steps", "0"), "`num_steps` must be at least 1; got 0"),
    "steps": (("--num-steps", "1001"), "`num_steps` must not exceed those of a discrete process"),
    "variance": (("--solver", "ancestral", "--variance", "learned"), "needs a network that learns"),
    "eta": (("--solver", "heun", "--eta", "1"), "`eta` belongs to ddim"),
    "count": (("--count", "0"), "`count` must be at least 1"),
    "average": (("--ema-sigma-rel", "5"), "`sigma_rel` must be above 0 and at most 0.2887"),
}


@pytest.mark.parametrize("case", REFUSED_SAMPLES)
def test_what_cannot_be_drawn_is_refused(finished, run, case):
    flags, words = REFUSED_SAMPLES[case]
    code, out, err = run(image_sample, "--run", str(finished), *flags)
    assert code == 2
    assert " ".join(words.split()) in " ".join((err + out).replace("│", " ").split())


def test_unknown_words_of_a_caption_are_named(shapes, run):
    code, _, err = run(image_sample, "--run", str(shapes), "--prompts", "a small red circel")
    assert code == 2
    assert "circel" in err
    code, _, err = run(image_sample, "--run", str(shapes))
    assert code == 2
    assert "give --prompts" in err


REFUSED_RUNS = {
    "guidance": (("--condition", "none"), "Guidance needs a network"),
    "no steps": (("--sampler.num-steps", "0"), "`num_steps` must be at least 1"),
    "steps": (("--sampler.num-steps", "1001"), "must not exceed those of a discrete process"),
    "batch": (("--batch-size", "1264"), "must hold at least a batch; got 1258 images"),
    "devices": (("--batch-size", "12"), "`batch_size` must be divisible by devices"),
    "captions": (("--condition", "tokens"), "they have no such thing"),
    "halvings": (
        ("--network.multipliers", "1", "1", "1", "1", "1"),
        "`image_size` must be halved 4 times",
    ),
    "solver": (("--sampler.variance", "learned"), "`variance` belongs to ancestral"),
    "source": (("--data.source", "digit"), "got 'digit'. Did you mean digits?"),
    "folder": (("--data.source", "files:/nowhere"), "files:/nowhere matches no file"),
}


@pytest.mark.parametrize("case", REFUSED_RUNS)
def test_what_cannot_be_trained_is_refused(run, tmp_path, case):
    flags, words = REFUSED_RUNS[case]
    code, out, err = run(image_diffusion, *TINY, "--workdir", str(tmp_path / "run"), *flags)
    assert code == 2
    assert " ".join(words.split()) in " ".join((err + out).replace("│", " ").split())
