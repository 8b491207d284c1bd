import keras
import nbclient
import nbformat
import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "ddim_walkthrough.ipynb"


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="once is enough: it runs on the default backend"
)
def test_the_notebook_runs_from_top_to_bottom(monkeypatch):
    monkeypatch.setenv("DDIM_FAST", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 7


def test_the_committed_outputs_come_from_one_run_from_top_to_bottom():
    cells = [
        cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"
    ]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
