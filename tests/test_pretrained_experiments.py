"""A folder of Hugging Face's in the scripts: written with, trained, and out again."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
import sentencepiece

from experiments import convert_checkpoint, lm_pretrain, lm_sample
from genai_jax.data.plain_chat import PlainChat, save_chat_template
from genai_jax.evaluation.text_runs import adopt, load_text_model
from genai_jax.interop.export import save_pretrained
from genai_jax.interop.pretrained import PretrainedFolder
from genai_jax.interop.safetensors import Outgoing, SafetensorsFile, write_safetensors
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from tests import kill_and_resume

SHAPE = TransformerConfig(
    vocab_size=320, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, max_length=32
)
TRAINING = (
    *("--steps", "3", "--batch-size", "16", "--length", "16", "--evaluation-rows", "16"),
    *("--evaluate-every", "3", "--save-every", "3", "--sample-tokens", "4", "--no-compare-xz"),
    *("--schedule.peak", "0.1", "--schedule.warmup-steps", "0"),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return kill_and_resume.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, corpus):
    """A Llama in bfloat16 with a SentencePiece tokenizer, as its authors might publish it."""
    folder = tmp_path_factory.mktemp("theirs")
    model = LanguageModel(SHAPE, jax.random.key(0))
    save_pretrained(folder, model, dtype=np.dtype(jax.numpy.bfloat16))
    written = io.BytesIO()
    lines = [line for path in sorted(corpus.iterdir()) for line in path.read_text().splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    (folder / "generation_config.json").write_text('{"eos_token_id": [2]}')
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    return folder


@pytest.fixture
def convert(run):
    def call(source, out, *flags):
        return run(convert_checkpoint, "--model", str(source), "--out", str(out), *flags)

    return call


@pytest.fixture
def train(run, corpus):
    def call(init, workdir, *flags):
        where = ("--init", str(init), "--workdir", str(workdir), "--data.path", f"{corpus}/*.txt")
        return run(lm_pretrain, *TRAINING, *where, *flags)

    return call


def assert_same_folders(one, other):
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_folder_becomes_a_run_and_comes_back_as_it_was(theirs, convert, run, tmp_path):
    assert convert(theirs, tmp_path / "run")[0] == 0
    sampling = ("--prompt", "alpha ", "--max-tokens", "6")
    code, text, about = run(lm_sample, "--model", str(theirs), *sampling)
    assert code == 0 and text.startswith("alpha ") and "bfloat16" in about
    code, again, about = run(lm_sample, "--model", str(tmp_path / "run"), *sampling)
    assert code == 0 and again == text and "step 0" in about
    code, out, _ = convert(tmp_path / "run", tmp_path / "back")
    assert code == 0 and f"written to {tmp_path / 'back'}" in out
    assert_same_folders(theirs, tmp_path / "back")


def test_a_folder_is_trained_and_goes_out_in_its_own_form(theirs, train, convert, run, tmp_path):
    code, out, _ = train(theirs, tmp_path / "run")
    assert code == 0
    assert f"beginning with {theirs}, llama" in out and "tokenizer: sentencepiece, 300 ids" in out
    assert train(theirs, tmp_path / "run")[0] == 0  # the same command again has nothing to do
    assert convert(tmp_path / "run", tmp_path / "out")[0] == 0
    before, after = PretrainedFolder(theirs), PretrainedFolder(tmp_path / "out")
    assert after.config == before.config and after.config.param_dtype == "bfloat16"
    assert (tmp_path / "out" / "config.json").read_text() == (theirs / "config.json").read_text()
    for name in ("tokenizer.model", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (theirs / name).read_bytes()
    moves = [
        np.abs(np.asarray(x, np.float32) - np.asarray(y, np.float32)).max()
        for x, y in zip(jax.tree.leaves(before.load()), jax.tree.leaves(after.load()), strict=True)
    ]
    assert min(moves) > 0  # every parameter has learnt
    assert convert(tmp_path / "run", tmp_path / "wide", "--dtype", "float32")[0] == 0
    assert PretrainedFolder(tmp_path / "wide").config.param_dtype == "float32"
    assert '"torch_dtype": "float32"' in (tmp_path / "wide" / "config.json").read_text()


def test_a_run_keeps_the_chat_template(theirs, convert, tmp_path):
    assert convert(theirs, tmp_path / "run")[0] == 0
    said = [{"role": "user", "content": "alpha<s>"}]
    folder, run = load_text_model(str(theirs)), load_text_model(str(tmp_path / "run"))
    ids = [x.chat_template().encode(x.tokenizer, said).tolist() for x in (folder, run)]
    assert ids[0] == ids[1] and ids[0].count(1) == 1 and ids[0][0] == 1
    (tmp_path / "run" / "origin" / "chat_template.jinja").unlink()
    without = load_text_model(str(tmp_path / "run"))
    assert without.chat is None
    with pytest.raises(ValueError, match="has none: no chat_template"):
        without.chat_template()
    # What a run was tuned with is its own, whatever it began as.
    ours = PlainChat(without.tokenizer)
    save_chat_template(ours.template, tmp_path / "run" / "chat")
    tuned = load_text_model(str(tmp_path / "run"))
    found = tuned.chat_template().encode(tuned.tokenizer, said)
    assert found.tolist() == ours.prompts([said])[0].tolist() != ids[0]
    assert tuned.chat_template().end_ids(tuned.tokenizer) == ours.end_ids


def test_a_run_that_has_begun_needs_the_folder_no_more(theirs, train, convert, tmp_path):
    folder = shutil.copytree(theirs, tmp_path / "folder")
    assert train(folder, tmp_path / "run", "--steps", "2", "--save-every", "2")[0] == 0
    shutil.rmtree(folder)
    code, _, err = train(folder, tmp_path / "run", "--steps", "2", "--save-every", "2")
    assert code == 0, err
    # Another folder in its place changes nothing of what the run goes out as.
    save_pretrained(folder, LanguageModel(SHAPE, jax.random.key(1)), most_file_bytes=10_000)
    assert train(folder, tmp_path / "run", "--steps", "2", "--save-every", "2")[0] == 0
    assert convert(tmp_path / "run", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "config.json").read_text() == (theirs / "config.json").read_text()
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_parameters_of_several_types_keep_them(theirs, convert, tmp_path):
    """Norms in float32 beside halves: through a run and out again, to the last bit."""
    mixed = shutil.copytree(theirs, tmp_path / "mixed")
    file = SafetensorsFile(theirs / "model.safetensors")
    tensors = {
        name: np.asarray(file[name], np.float32) + (1e-4 if "norm" in name else 0)
        for name in file.entries
    }
    outgoing = {
        name: Outgoing(
            np.dtype(np.float32 if "norm" in name else jax.numpy.bfloat16),
            x.shape,
            lambda x=x, name=name: x.astype("float32" if "norm" in name else jax.numpy.bfloat16),
        )
        for name, x in tensors.items()
    }
    write_safetensors(mixed / "model.safetensors", outgoing, {})
    assert convert(mixed, tmp_path / "run")[0] == 0
    assert convert(tmp_path / "run", tmp_path / "out")[0] == 0
    assert_same_folders(mixed, tmp_path / "out")


def test_a_model_folder_as_the_working_directory_is_not_taken_by_itself(
    theirs, run, corpus, tmp_path, monkeypatch
):
    monkeypatch.chdir(theirs)
    where = ("--workdir", str(tmp_path / "run"), "--data.path", f"{corpus}/*.txt")
    small = ("--model.num-layers", "1", "--model.embed-dim", "16", "--model.num-heads", "2")
    code, out, _ = run(lm_pretrain, *TRAINING, *where, *small, "--data.tokenizer", "bytes")
    assert code == 0 and "tokenizer: bytes" in out


def test_a_folder_without_a_tokenizer_can_be_converted(theirs, convert, tmp_path):
    bare = shutil.copytree(theirs, tmp_path / "bare")
    (bare / "tokenizer.model").unlink()
    code, _, _ = convert(
        bare, tmp_path / "out", "--to", "huggingface", "--dtype", "float32", "--max-file-gb", "1e-5"
    )
    assert code == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    sizes = [x.nbytes for x in jax.tree.leaves(PretrainedFolder(tmp_path / "out").load())]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert len(set(index["weight_map"].values())) > 2


def test_what_is_interrupted_leaves_nothing(theirs, convert, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert_checkpoint.Checkpoints, "save", interrupt)
        assert convert(theirs, tmp_path / "run")[0] == 130
    assert not list(tmp_path.iterdir())
    assert convert(theirs, tmp_path / "run")[0] == 0


def test_a_checkpoint_that_cannot_be_written_is_an_error(theirs, convert, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(convert_checkpoint.Checkpoints, "save", lambda *_: False)
        code, _, err = convert(theirs, tmp_path / "run")
    assert code == 2 and "could not be written" in err and not list(tmp_path.iterdir())


def test_links_beside_the_weights_are_not_followed_out_of_the_folder(theirs, convert, tmp_path):
    folder = shutil.copytree(theirs, tmp_path / "folder")
    (tmp_path / "secret").write_text("secret")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
    code, _, err = convert(folder, tmp_path / "run")
    assert code == 2 and "outside of the folder" in err and not (tmp_path / "run").exists()
    (folder / "chat_template.jinja").unlink()
    assert convert(folder, tmp_path / "run")[0] == 0
    notes = tmp_path / "run" / "origin" / "origin.json"
    said = json.loads(notes.read_text())
    for files in ({"../escaped.safetensors": []}, [], {"x": 3}):
        notes.write_text(json.dumps(said | {"files": files}))
        assert convert(tmp_path / "run", tmp_path / "out")[0] == 2
    assert not (tmp_path / "escaped.safetensors").exists() and not (tmp_path / "out").exists()


def test_a_run_of_ours_goes_out_with_its_tokenizer(run, convert, corpus, tmp_path):
    shape = (
        *("--model.num-layers", "2", "--model.embed-dim", "16", "--model.num-heads", "2"),
        *("--model.mlp-dim", "32", "--model.max-length", "16", "--data.vocab-size", "300"),
    )
    where = ("--workdir", str(tmp_path / "run"), "--data.path", f"{corpus}/*.txt")
    assert run(lm_pretrain, *TRAINING, *shape, *where)[0] == 0
    code, out, _ = convert(tmp_path / "run", tmp_path / "out", "--max-file-gb", "1e-6")
    assert code == 0 and "tokenizer: tokenizer.model" in out
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    sampling = ("--prompt", "alpha ", "--max-tokens", "6", "--temperature", "0")
    ours = run(lm_sample, "--model", str(tmp_path / "run"), *sampling)
    out = run(lm_sample, "--model", str(tmp_path / "out"), *sampling)
    assert ours[:2] == out[:2]


def test_what_cannot_be_is_refused(theirs, convert, train, run, tmp_path):
    code, _, err = convert(theirs, theirs)
    assert code == 2 and "must be a new or empty folder" in err
    code, _, err = convert(tmp_path / "nothing", tmp_path / "out")
    assert code == 2 and "a run has a config.json" in err and not (tmp_path / "out").exists()
    code, _, err = convert(tmp_path / "nothing", tmp_path / "out", "--to", "run")
    assert code == 2 and "no folder of Hugging Face's" in err
    code, _, err = train(theirs, tmp_path / "long", "--length", "64")
    assert code == 2 and "Give --length 32" in err and not (tmp_path / "long").exists()
    broken = shutil.copytree(theirs, tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-7])
    for path in (broken / "model.safetensors", tmp_path / "nowhere"):
        code, _, err = run(lm_sample, "--model", str(path))
        assert code == 2 and err.startswith("ERROR")
    for code, _, err in (
        run(lm_sample, "--model", str(broken)),
        convert(broken, tmp_path / "out"),
        train(broken, tmp_path / "new"),
    ):
        assert code == 2 and "the file is cut off" in err
    (broken / "model.safetensors").write_bytes(weights)
    said = (broken / "config.json").read_text()
    (broken / "config.json").write_text("{")
    code, _, err = run(lm_sample, "--model", str(broken))
    assert code == 2 and "config.json is not valid JSON" in err
    (broken / "config.json").write_text(said)
    (broken / "tokenizer.model").unlink()
    code, _, err = run(lm_sample, "--model", str(broken))
    assert code == 2 and "must hold tokenizer.json or tokenizer.model" in err
    code, _, err = run(lm_sample, "--model", str(broken), "--ema-sigma-rel", "0.1")
    assert code == 2 and "is no run" in err


def test_a_model_of_no_family_stays_here(run, convert, corpus, tmp_path):
    flags = ("--model.norm-offset", "0.5", "--model.max-length", "16", "--data.tokenizer", "bytes")
    where = ("--workdir", str(tmp_path / "run"), "--data.path", f"{corpus}/*.txt")
    small = ("--model.num-layers", "1", "--model.embed-dim", "16", "--model.num-heads", "2")
    assert run(lm_pretrain, *TRAINING, *flags, *where, *small)[0] == 0
    code, _, err = convert(tmp_path / "run", tmp_path / "out")
    assert code == 2 and "of a known family" in err and "`norm_offset` 0.5" in err


def test_the_shape_is_the_folder_s_and_how_to_compute_is_the_user_s(theirs):
    shape = PretrainedFolder(theirs).config
    adopted = adopt(TransformerConfig(dropout=0.1, layers="scanned"), shape, 16)
    assert dataclasses.replace(adopted, dropout=0.0, layers="unrolled") == dataclasses.replace(
        PretrainedFolder(theirs).config, param_dtype="float32"
    )
    assert adopted.dropout == 0.1 and adopted.layers == "scanned"
