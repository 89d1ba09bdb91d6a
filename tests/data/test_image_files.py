"""Folders of images: what is in them, in which split, and what is said of what cannot be read."""

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genai_jax.data import image_files
from genai_jax.data.image_decoding import UnreadableImageError
from genai_jax.data.images import ImageConfig, load_images


def write_images(folder, names, *, size=(6, 6), seed=0, mode="RGB"):
    """Write images of noise, all of them different; returns their pixels by name."""
    random = np.random.default_rng(seed)
    written = {}
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = size if mode == "L" else (*size, 3)
        written[name] = random.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(written[name]).save(path, "PNG")
    return written


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def load(tmp_path, photos):
    def load_from(source=None, seed=0, **options):
        config = ImageConfig(
            source=f"files:{photos if source is None else source}",
            cache_dir=str(tmp_path / "cache"),
            **options,
        )
        return load_images(config, seed=seed)

    return load_from


def everything(data):
    return [image for split in ("train", "validation", "test") for image in data.levels_of(split)]


def by_bytes(images):
    return sorted(image.tobytes() for image in images)


def test_a_flat_folder_is_read_whole(photos, load):
    written = write_images(photos, [f"{i:02}.png" for i in range(20)])
    data = load()
    assert by_bytes(everything(data)) == by_bytes(written.values())
    assert data.shape == (6, 6, 3) and data.levels == 256
    assert data.class_names == () and data.train[0].keys() == {"image"}
    assert [len(s) for s in (data.train, data.validation, data.test)] == [14, 2, 4]
    np.testing.assert_allclose(
        data.test[1]["image"], data.levels_of("test")[1] / 127.5 - 1, atol=1e-6
    )
    assert "20 files, 6x6, 3 channels of 256 levels" in data.summary


def test_folders_are_classes(photos, load):
    names = [f"{c}/deep/{i}.png" if i % 2 else f"{c}/{i}.png" for c in "zab" for i in range(8)]
    written = write_images(photos, names)
    data = load()
    assert data.class_names == ("a", "b", "z")
    truth = {pixels.tobytes(): "abz".index(name[0]) for name, pixels in written.items()}
    for split in ("train", "validation", "test"):
        labels = data.field_of(split, "label")
        assert [truth[x.tobytes()] for x in data.levels_of(split)] == labels.tolist()
    row = data.train[5]
    levels = np.rint((row["image"] + 1) * 127.5).astype(np.uint8)
    assert truth[levels.tobytes()] == row["label"] and row["label"].dtype == np.int32
    assert load(labels=False).class_names == ()
    # The folder of a glob is what stands before its first wildcard.
    assert load(f"{photos}/*/*.png").class_names == ("a", "b", "z")
    assert load(f"{photos}/a/*.png").class_names == ()


def test_one_folder_is_no_class(photos, load):
    write_images(photos, [f"cats/{i}.png" for i in range(8)])
    data = load()
    assert data.num_classes == 0 and len(everything(data)) == 8


def test_files_beside_folders_are_refused_as_classes(photos, load):
    write_images(photos, [*(f"a/{i}.png" for i in range(4)), *(f"{i}.png" for i in range(2))])
    with pytest.raises(ValueError, match=r"got 2 of 6 directly in .*--data.no-labels"):
        load()
    assert len(everything(load(labels=False))) == 6


def test_folders_named_for_splits_are_not_taken_for_classes(photos, load):
    write_images(photos, [f"{c}/{i}.png" for c in ("train", "test") for i in range(4)])
    with pytest.raises(ValueError, match=r"got test, train, which name splits. Give files:.*train"):
        load()
    assert len(everything(load(photos / "train"))) == 4


@pytest.mark.parametrize("megabytes", [0, 64])
def test_unreadable_files_are_counted_and_named(photos, load, megabytes):
    written = write_images(photos, [f"{i}.png" for i in range(12)])
    (photos / "5.png").write_bytes((photos / "5.png").read_bytes()[:70])
    (photos / "notes.txt").write_text("not an image")
    (photos / "void.jpg").touch()
    (photos / ".DS_Store").write_bytes(b"hidden")
    data = load(cache_megabytes=megabytes)
    assert by_bytes(everything(data)) == by_bytes(v for k, v in written.items() if k != "5.png")
    assert "11 files, 3 skipped: 5.png (damaged: " in data.summary
    assert "notes.txt (neither PNG nor JPEG), void.jpg (empty)" in data.summary
    with pytest.raises(
        ValueError, match=r"3 of 14 cannot be read: 5\.png .*--data.unreadable skip"
    ):
        load(unreadable="error", cache_megabytes=megabytes)


def test_long_lists_of_skipped_files_are_cut(photos, load):
    write_images(photos, [f"{i}.png" for i in range(5)])
    for i in range(9):
        (photos / f"x{i}.txt").write_text("text")
    summary = load().summary
    assert "9 skipped: x0.txt" in summary and "x4.txt (neither PNG nor JPEG) and 4 more" in summary
    assert "x5" not in summary


def test_files_that_may_not_be_read_are_named(photos, load, monkeypatch):
    write_images(photos, [f"{i}.png" for i in range(6)])
    original = Path.read_bytes

    def read_bytes(path):  # as for a user to whom the file is closed; root may read every file
        if path.name == "3.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert "5 files, 1 skipped: 3.png (Permission denied)" in load().summary


def test_nothing_to_read_is_said(photos, load, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"photos holds no file.*PNG or JPEG"):
        load()
    with pytest.raises(FileNotFoundError, match=r"\*\.png matches no file"):
        load(f"{photos}/*.png")
    with pytest.raises(FileNotFoundError, match="matches no file"):
        load(tmp_path / "nowhere")
    (photos / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"none of 1 files can be read as one: .*a\.txt"):
        load()
    with pytest.raises(ValueError, match=r"1 of 1 cannot be read: a\.txt \(neither PNG nor JPEG"):
        load(size=8, channels=3)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_are_refused(photos, load, count):
    write_images(photos, [f"{i}.png" for i in range(count)])
    with pytest.raises(ValueError, match=f"1 for validation and 1 for test; got {count} in all"):
        load()


def test_copies_are_in_one_split(photos, load):
    write_images(photos, [f"{i}.png" for i in range(10)])
    for i in range(10):
        for k in range(i % 3):
            (photos / f"copy{k}of{i}.png").write_bytes((photos / f"{i}.png").read_bytes())
    data = load()
    splits = [{x.tobytes() for x in data.levels_of(s)} for s in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 10
    assert len(everything(data)) == 19 and "19 files (9 of them copies)" in data.summary
    for i in range(1, 10):
        (photos / f"{i}.png").write_bytes((photos / "0.png").read_bytes())
        for k in range(i % 3):
            (photos / f"copy{k}of{i}.png").write_bytes((photos / "0.png").read_bytes())
    with pytest.raises(ValueError, match=r"got 1 in all\. Give more images that differ"):
        load()


def test_a_side_depends_on_the_bytes_alone(photos, load):
    written = write_images(photos, [f"{i}.png" for i in range(20)])
    before = load()
    for i in range(20):
        (photos / f"{i}.png").rename(photos / f"{(7 * i) % 20}-renamed.png")
    after = load(seed=3)
    for split in ("train", "validation", "test"):
        assert by_bytes(before.levels_of(split)) == by_bytes(after.levels_of(split))
    assert len(written) == 20 and before.content_digest != after.content_digest


def test_sizes_are_brought_to_one_or_refused(photos, load):
    write_images(photos, [f"{i}.png" for i in range(6)])
    write_images(photos, ["wide.png"], size=(6, 9), seed=1)
    with pytest.raises(ValueError, match=r"wide\.png must be 6x6 .*got 6x9. Give --data.size"):
        load()
    with pytest.raises(ValueError, match=r"wide\.png must be 6x6 pixels"):
        load(size=6, resize="error")
    data = load(size=4)
    assert data.shape == (4, 4, 3) and len(everything(data)) == 7
    assert data.train[0]["image"].shape == (4, 4, 3)


def test_images_keep_a_size_that_is_not_square(photos, load):
    written = write_images(photos, [f"{i}.png" for i in range(6)], size=(4, 10))
    data = load()
    assert data.shape == (4, 10, 3)
    assert by_bytes(everything(data)) == by_bytes(written.values())


def test_channels_are_those_of_the_files(photos, load):
    written = write_images(photos, [f"{i}.png" for i in range(6)], mode="L")
    data = load()
    assert data.shape == (6, 6, 1)
    assert by_bytes(everything(data)) == by_bytes(written.values())
    assert load(channels=3).shape == (6, 6, 3)
    write_images(photos, ["zebra.png"], seed=1)
    assert load().shape == (6, 6, 3) and load(channels=1).shape == (6, 6, 1)


def test_alpha_is_refused_where_told(photos, load):
    write_images(photos, [f"{i}.png" for i in range(6)])
    clear = np.zeros((6, 6, 4), np.uint8)
    Image.fromarray(clear).save(photos / "clear.png")
    assert any((image == 255).all() for image in everything(load()))
    with pytest.raises(ValueError, match=r"clear\.png must be opaque"):
        load(alpha="error")


def test_what_is_decoded_when_read_is_what_is_decoded_before(photos, load):
    write_images(photos, [f"{c}/{i}.png" for c in "ab" for i in range(8)])
    kept, lazy = load(size=5), load(size=5, cache_megabytes=0)
    assert kept.content_digest == lazy.content_digest and kept.summary == lazy.summary
    for i in range(30):
        a, b = kept.train[i], lazy.train[i]
        assert a.keys() == b.keys() == {"image", "label"}
        np.testing.assert_array_equal(a["image"], b["image"])
        assert a["label"] == b["label"]
    np.testing.assert_array_equal(kept.levels_of("test"), lazy.levels_of("test"))
    np.testing.assert_array_equal(kept.field_of("test", "label"), lazy.field_of("test", "label"))
    for path in photos.rglob("*.png"):
        path.write_bytes(b"gone")
    with pytest.raises(UnreadableImageError, match=r"png could be read at the start, and now is"):
        _ = lazy.train[0]
    assert kept.train[0]["image"].shape == (5, 5, 3)


def test_files_are_decoded_once_and_again_when_they_change(photos, load, monkeypatch):
    written = write_images(photos, [f"{i}.png" for i in range(6)])
    first = load(size=6, channels=3)
    decoded = []

    def decode(path, fit):
        decoded.append(path.name)
        return original(path, fit)

    original = image_files._decode
    monkeypatch.setattr(image_files, "_decode", decode)
    again = load(size=6, channels=3)
    assert not decoded and again.content_digest == first.content_digest
    assert by_bytes(everything(again)) == by_bytes(written.values())
    new = write_images(photos, ["3.png"], seed=9)["3.png"]
    changed = load(size=6, channels=3)
    assert sorted(decoded) == [f"{i}.png" for i in range(6)]
    assert changed.content_digest != first.content_digest
    assert any((image == new).all() for image in everything(changed))
    decoded.clear()
    load(size=5, channels=3)
    assert len(decoded) == 6


def test_more_files_than_are_decoded_at_once_stay_in_order(photos, load, monkeypatch):
    monkeypatch.setattr(image_files, "_AT_ONCE", 4)
    written = write_images(photos, [f"{i:02}.png" for i in range(11)])
    data = load()
    assert by_bytes(everything(data)) == by_bytes(written.values())
    order = [written[name].tobytes() for name in sorted(written)]
    for split in ("train", "validation", "test"):
        places = [order.index(image.tobytes()) for image in data.levels_of(split)]
        assert places == sorted(places)


def test_a_cache_that_cannot_be_written_says_what_to_do(photos, tmp_path):
    write_images(photos, [f"{i}.png" for i in range(6)])
    (tmp_path / "file").touch()
    config = ImageConfig(source=f"files:{photos}", cache_dir=str(tmp_path / "file"))
    with pytest.raises(PermissionError, match=r"Choose another with --data.cache-dir"):
        load_images(config, seed=0)
