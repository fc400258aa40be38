"""The real model where its package is installed, and a tiny one everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.errors import ModelNotFound
from runtime.stored.model_files import cache_dir, default_model
from runtime.weights import Checkpoint
from tests.runtime.tiny_model import write_tiny_gemma
from tests.runtime.whole_model import WholeModel


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    try:
        return default_model(cache_dir())
    except ModelNotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def gemma(gemma_path: Path) -> Checkpoint:
    return Checkpoint.open(gemma_path)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> WholeModel:
    return WholeModel(Checkpoint.open(tiny_path))
