"""Sets of tensorflow-datasets, prepared as a user prepares them, read without TensorFlow."""

import re
import subprocess
import sys

import numpy as np
import pytest

from genai_jax.data.images import ImageConfig, load_images
from genai_jax.data.prepared_sets import open_prepared_set

# Four sets; in a process of its own, so that the test's has only the files.
PREPARE = """
import io, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

def png(split, i, shape):
    # As a file: tensorflow-datasets needs TensorFlow to encode an array.
    pixels = np.random.default_rng([len(split), i]).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    return io.BytesIO(file.getvalue())

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    shape, sizes, label, key = (8, 6, 3), {"train": 20, "test": 5}, None, "image"

    def _info(self):
        features = {self.key: tfds.features.Image(shape=self.shape)}
        if self.label is not None:
            features["label"] = self.label
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name, n) for name, n in self.sizes.items()}

    def _generate_examples(self, split, count):
        for i in range(count):
            shape = tuple(8 + i % 3 if side is None else side for side in self.shape)
            example = {self.key: png(split, i, shape)}
            if self.label is not None:
                example["label"] = ["cat", "dog", "eel"][i % 3]
            yield i, example

class TinyAnimals(Tiny):
    label = tfds.features.ClassLabel(names=["cat", "dog", "eel"])

class TinyGreys(Tiny):
    shape, sizes = (5, 5, 1), {"train": 20, "validation": 6}

class TinyMixed(Tiny):
    shape, sizes = (None, None, 3), {"train": 20, "validation": 6, "test": 4}

class TinyMaps(Tiny):
    key = "height_map"

for builder in (TinyAnimals, TinyGreys, TinyMixed, TinyMaps):
    builder(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    command = [sys.executable, "-W", "ignore", "-c", PREPARE, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture
def load(prepared, tmp_path):
    def load_from(name, seed=0, **options):
        config = ImageConfig(
            f"tfds:{name}", data_dir=str(prepared), cache_dir=str(tmp_path / "cache"), **options
        )
        return load_images(config, seed=seed)

    return load_from


def pixels(split, i, shape):
    return np.random.default_rng([len(split), i]).integers(0, 256, shape, dtype=np.uint8)


def by_bytes(images):
    return sorted(image.tobytes() for image in images)


@pytest.mark.parametrize("megabytes", [0, 64])
def test_pixels_labels_and_splits_are_those_of_the_set(load, megabytes):
    data = load("tiny_animals", cache_megabytes=megabytes)
    assert data.shape == (8, 6, 3) and data.levels == 256
    assert data.class_names == ("cat", "dog", "eel")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [18, 2, 5]
    truth = {
        split: {pixels(split, i, (8, 6, 3)).tobytes(): i % 3 for i in range(n)}
        for split, n in (("train", 20), ("test", 5))
    }
    for split in ("train", "validation", "test"):
        wanted = truth["test" if split == "test" else "train"]
        labels = data.field_of(split, "label").tolist()
        assert [wanted[x.tobytes()] for x in data.levels_of(split)] == labels
    seen = by_bytes([*data.levels_of("train"), *data.levels_of("validation")])
    assert seen == sorted(truth["train"])
    row = data.test[4]
    np.testing.assert_allclose(row["image"], data.levels_of("test")[4] / 127.5 - 1, atol=1e-6)
    assert row["label"].shape == () and row["label"].dtype == np.int32 and row["weight"] == 1
    assert "tiny_animals/1.0.0, test split 'test', as given, 8x6" in data.summary
    assert "tensorflow" not in sys.modules


def test_what_is_decoded_when_read_is_what_is_decoded_before(load):
    kept, lazy = load("tiny_animals", size=4), load("tiny_animals", size=4, cache_megabytes=0)
    for i in range(40):
        a, b = kept.train[i], lazy.train[i]
        assert a.keys() == b.keys() and a["image"].shape == (4, 4, 3)
        assert all((a[name] == b[name]).all() for name in a)
    unlabelled = load("tiny_animals", size=4, labels=False)
    assert unlabelled.train[0].keys() == {"image"} and unlabelled.num_classes == 0
    grey = load("tiny_animals", channels=1)
    assert grey.shape == (8, 6, 1)
    digests = {data.content_digest for data in (kept, lazy, unlabelled, grey)}
    assert len(digests) == 4
    # The order is the seed's; what there is, and where, is not.
    other = load("tiny_animals", seed=5, size=4)
    assert other.content_digest == kept.content_digest
    np.testing.assert_array_equal(other.levels_of("validation"), kept.levels_of("validation"))


def test_without_a_test_split_the_only_other_one_is_it(load):
    data = load("tiny_greys")
    assert data.shape == (5, 5, 1) and data.class_names == ()
    assert [len(s) for s in (data.train, data.validation, data.test)] == [18, 2, 6]
    given = by_bytes(pixels("validation", i, (5, 5, 1)) for i in range(6))
    assert by_bytes(data.levels_of("test")) == given
    assert "test split 'validation', as given" in data.summary


def test_given_splits_are_used_and_a_named_one_is_cut(load):
    data = load("tiny_mixed", size=8)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [20, 6, 4]
    assert data.shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"tfds:tiny_mixed has images of many sizes.*--data.size"):
        load("tiny_mixed")
    with pytest.raises(ValueError, match=r"tfds:tiny_mixed\[\d+\] must be 8x8 pixels .*; got \d+x"):
        load("tiny_mixed", size=8, resize="error")
    part = load("tiny_animals:train[:50%]")
    assert [len(s) for s in (part.train, part.validation, part.test)] == [7, 1, 2]
    assert "test split cut from train" in part.summary


def test_what_holds_no_images_is_refused(load):
    with pytest.raises(ValueError, match=r"a feature `image` .*its features are: height_map"):
        load("tiny_maps")
    with pytest.raises(ValueError, match=r"tiny_animals:valid cannot be read.*\['train', 'test'\]"):
        load("tiny_animals:valid")


def test_sets_are_decoded_once(load, monkeypatch):
    from genai_jax.data import image_sets

    first = load("tiny_greys")
    monkeypatch.setattr(image_sets, "fit_array", None)  # would fail if it were called
    again = load("tiny_greys")
    assert again.content_digest == first.content_digest
    np.testing.assert_array_equal(again.levels_of("test"), first.levels_of("test"))


def test_labels_out_of_range_are_refused(load, monkeypatch):
    from genai_jax.data import image_sets

    monkeypatch.setattr(image_sets, "_class_names", lambda features: ("cat", "dog"))
    with pytest.raises(
        ValueError, match=r"the label of tfds:tiny_animals\[\d+\] .* 0 \.\.\. 1; got 2"
    ):
        load("tiny_animals")


@pytest.mark.filterwarnings("ignore")
def test_unprepared_and_unknown_sets_say_what_to_do(load, prepared):
    with pytest.raises(ValueError, match="tfds:cifar10 must be prepared") as error:
        load("cifar10")
    command = re.search(r'python -c "(.*)"', str(error.value))[1]
    compile(command, "command", "exec")
    assert "'cifar10'" in command and str(prepared) in command
    with pytest.raises(
        ValueError, match=r"knows no set 'fashion_mnits'.*Did you mean fashion_mnist"
    ):
        load("fashion_mnits")


@pytest.mark.filterwarnings("ignore")
def test_a_set_that_is_not_in_the_usual_place_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"tfds:cifar10 must be prepared.*builder\('cifar10', f"):
        open_prepared_set("cifar10", "train")
