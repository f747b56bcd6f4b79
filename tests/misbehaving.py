"""Releases that misbehave while they load, for real: config.cfg can call any function that is registered.

The interpreter is an environment of its own beside the project's packages, with one more distribution in it,
whose callback runs the code that a release's config.cfg gives it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import spacy

_CALLBACK: Final = """
def run_code(code: str):
    exec(code, {"__name__": __name__})
    return lambda nlp: nlp
"""


def interpreter(folder: Path) -> str:
    """Make an environment in a folder and return its Python, which knows the callback."""
    packages = folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    metadata = packages / "misbehaving-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "bin").mkdir()
    python = folder / "bin/python"
    base = Path(sys.executable).resolve()
    python.symlink_to(base)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    (packages / "project.pth").write_text(str(Path(spacy.__file__).parents[1]) + os.linesep)
    (packages / "misbehaving.py").write_text(_CALLBACK)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[spacy_callbacks]\nrun_code.v1 = misbehaving:run_code\n")
    return str(python)


def misbehave(release: Path, code: str) -> Path:
    """Let a pipeline run code whenever it is loaded; returns the pipeline."""
    config = release / "config.cfg"
    quoted = code.replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    before, found, after = config.read_text().partition("after_creation = null\n")
    assert found
    block = f'[nlp.after_creation]\n@callbacks = "run_code.v1"\ncode = "{quoted}"\n\n'
    head, _, tail = after.partition("\n[")
    config.write_text(f"{before}{head}\n{block}[{tail}")
    return release
