"""Run a notebook from top to bottom and keep its outputs; the file is replaced only if every cell
ran.

python scripts/run_notebook.py [notebooks/ddim_walkthrough.ipynb]
"""

from __future__ import annotations

import pathlib
import sys

import nbclient
import nbformat

from ddim_keras.support import files

DEFAULT = pathlib.Path(__file__).resolve().parent.parent / "notebooks" / "ddim_walkthrough.ipynb"


def main(path: pathlib.Path = DEFAULT) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1800, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop(
            "execution", None
        )  # when each cell ran: a change in every line, of no use to a reader
        if cell.cell_type == "code":  # TensorFlow's log of its start
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    with files.written_beside(path) as temporary:
        nbformat.write(notebook, temporary)


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:2]))
