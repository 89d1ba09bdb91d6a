"""The notebooks: each the same as its plain-text twin, and run from the first cell to the last."""

from pathlib import Path

import jupytext
import nbclient
import pytest

COLAB = Path(__file__).resolve().parent.parent / "colab"
SAYS = {
    "align_a_language_model": "true reward above the reference's",
    "denoise_an_image": "bits per dimension of 359 images",
    "sample_a_language_model": "--- temperature 1: ",
    "train_a_language_model": "--- temperature 0.5",
}
"""What each notebook prints, in its last part."""
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))


def cells(path):
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def test_every_notebook_has_a_twin():
    assert [p.stem for p in NOTEBOOKS] == sorted(p.stem for p in COLAB.glob("*.py"))
    assert NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_twins_are_the_same(notebook):
    """After a change of one: `jupytext --sync colab/*.py`."""
    assert cells(notebook) == cells(notebook.with_suffix(".py"))
    for cell in jupytext.read(notebook).cells:
        assert not cell.get("outputs")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook, monkeypatch):
    monkeypatch.setenv("STEPS", "20")
    monkeypatch.setenv("PYTHONPATH", str(COLAB.parent))
    monkeypatch.delenv("MPLBACKEND")  # pictures inline, as a reader sees them
    document = jupytext.read(notebook)
    client = nbclient.NotebookClient(
        document, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(COLAB)}}
    )
    client.execute()
    outputs = [output for cell in document.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
    texts = "".join(o.get("text", "") for o in outputs)
    assert SAYS[notebook.stem] in texts
