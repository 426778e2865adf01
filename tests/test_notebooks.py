"""Every notebook runs from top to bottom, and is committed without outputs."""

import shutil
import warnings
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_draws(path, tmp_path):
    with warnings.catch_warnings():
        # Importing the client warns of Jupyter's own paths and event loops, not of ours.
        warnings.simplefilter("ignore")
        from nbclient import NotebookClient
    shutil.copy(path, tmp_path)
    notebook = nbformat.read(tmp_path / path.name, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=400,
        resources={"metadata": {"path": str(tmp_path)}},
        kernel_name="python3",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client.execute()
    drawn = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(drawn) >= 3
    assert (tmp_path / "runs" / "quickstart" / "frontier.csv").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
