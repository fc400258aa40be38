"""Sentence encoders on the disk: out of a package, from a path, from the hub, by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.models.catalogue import Catalogue
from apps.models.hub import HubFile, HubSource, choose
from apps.models.library import Library
from apps.models.pulls import Pulls
from apps.models.shelf import Shelf
from mesh.errors import ModelNotFound
from runtime.compute.precision import Precision
from runtime.formats.safetensors_folder import POOLING
from runtime.stored import model_packages
from runtime.stored.model_packages import ModelPackage

pytest.importorskip("transformers")
from tests.runtime.test_seq2seq_pieces import write_sentence_encoder


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that carries a model, and one that is not installed."""
    (tmp_path / "site" / "some_sentences").mkdir(parents=True)
    folder = write_sentence_encoder(tmp_path / "site" / "some_sentences" / "model")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    packages = {
        "some-sentences": ModelPackage("some-sentences", "some_sentences", "minilm"),
        "not-here": ModelPackage("not-here", "module_that_is_not_here", "voice"),
    }
    monkeypatch.setattr(model_packages, "PACKAGES", packages)
    monkeypatch.setattr("apps.models.catalogue.PACKAGES", packages)
    return folder


def catalogue(tmp_path: Path) -> Catalogue:
    (tmp_path / "models").mkdir(exist_ok=True)
    return Catalogue(Shelf(tmp_path / "models"))


def test_a_model_out_of_its_package_is_known_by_name(packaged: Path, tmp_path: Path) -> None:
    here = catalogue(tmp_path)
    found = here.find("some-sentences")
    assert (found.path, found.name) == (packaged.resolve(), "some-sentences")
    assert "some-sentences" in here.names()
    assert here.name_of(found) == "some-sentences"
    assert here.named("some-sentences") is found
    assert here.named("model") is None  # the folder's own name means nothing
    assert here.whole(found.model_id) is found
    assert here.reference(found).path == ""  # nobody else has it there
    (held,) = [one for one in here.held() if one.name == "some-sentences"]
    assert (held.purpose, held.is_whole) == ("embeddings", True)


def test_a_package_that_is_not_installed_or_cannot_be_removed(
    packaged: Path, tmp_path: Path
) -> None:
    here = catalogue(tmp_path)
    with pytest.raises(ModelNotFound, match=r"pip install 'potluck\[voice\]'"):
        here.find("not-here")
    assert "not-here" not in here.names()
    with pytest.raises(ModelNotFound, match="pip uninstall some-sentences"):
        here.remove("some-sentences", lambda model: "")


async def test_what_auto_means_is_said_to_the_others(packaged: Path, tmp_path: Path) -> None:
    """Or a device that knows it for another kind of model would hold it otherwise."""
    catalogue(tmp_path)
    for asked, meant in ((Precision.AUTO, Precision.FP32), (Precision.INT8, Precision.INT8)):
        library = Library(Shelf(tmp_path / "models"), precision=asked)
        reference, checkpoint = await library.find("some-sentences")
        assert reference.precision is checkpoint.precision is meant


async def test_a_pull_from_a_path_brings_the_pooling(tmp_path: Path) -> None:
    source = write_sentence_encoder(tmp_path / "sentences.v2")
    catalogue(tmp_path)
    shelf = Shelf(tmp_path / "models")
    library = Library(shelf)
    reports = [report async for report in Pulls(None, library, shelf).pull(str(source))]
    assert reports[-1]["name"] == "sentences.v2"
    brought = tmp_path / "models" / "sentences.v2"
    assert (brought / POOLING).read_bytes() == (source / POOLING).read_bytes()
    assert not list(brought.rglob("*.etag"))
    _, found = await library.find("sentences.v2")
    assert found.model_id == Catalogue(shelf).find(str(source)).model_id
    freed = await library.remove("sentences.v2", lambda model: "")
    assert freed == sum(file.stat().st_size for file in source.rglob("*") if file.is_file())


def test_of_a_repository_on_the_hub_the_pooling_comes_too() -> None:
    names = (
        "model.safetensors", "config.json", "modules.json", "sentence_bert_config.json",
        "vocab.txt", POOLING, "2_Dense/config.json", "onnx/model.onnx", "README.md",
    )  # fmt: skip
    model = choose(HubSource("o/r", None), [HubFile(name, 10, "") for name in names])
    assert {file.path for file in model.files} == set(names[:6])
