"""What vLLM's loaders read is seen, whoever imports them and when, and only where it is all that they read."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_hook.identity import loads
from vllm_hook.identity.files import CHANGED, WeightFile, digest_of
from vllm_hook.identity.loads import load_of

SOURCE = """
class DefaultModelLoader:
    def __init__(self, load_format="auto", during=None):
        from types import SimpleNamespace
        self.load_config, self.during = SimpleNamespace(load_format=load_format), during

    def _prepare_weights(self, folder):
        import pathlib
        return str(folder), sorted(map(str, pathlib.Path(folder).iterdir())), True

    def load_weights(self, model, folders):
        for folder in folders:
            for path in self._prepare_weights(folder)[1]:
                with open(path, "rb") as file:
                    file.read()
        if self.during is not None:
            self.during()
        return "loaded"


class Fancy(DefaultModelLoader):
    pass


class DummyModelLoader:
    def load_weights(self, model, config):
        return "made up"


class Random(DummyModelLoader):
    pass
"""


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """vLLM's loaders, as far as files go, seen."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "fake_loaders.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    try:
        loads._when_imported("fake_loaders", loads._watch_default)
        loads._when_imported("fake_loaders_of_nobody", loads._watch_default)
        module = importlib.import_module("fake_loaders")
    finally:
        sys.path.remove(str(folder))
    loads._when_imported("fake_loaders", loads._watch_random)  # imported by now
    return module


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"a")
    (folder / "b.safetensors").write_bytes(b"b")
    return folder


def digest(folder: Path) -> str:
    return digest_of([WeightFile(path) for path in sorted(folder.iterdir())])


def seen(loader: Any, *folders: Path) -> Any:
    model = torch.nn.Linear(1, 1)
    assert loader.load_weights(model, folders) == "loaded"
    return load_of(model)


def test_files_that_were_read_are_named_by_their_content(loader: ModuleType, weights: Path):
    load = seen(loader.DefaultModelLoader(), weights)
    assert load.digest() == digest(weights) and not load.problem and not load.random
    assert seen(loader.DefaultModelLoader(), weights, weights).digest() not in ("", load.digest())


def test_every_load_counts_for_itself(loader: ModuleType, weights: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a").write_bytes(b"other")
    same = loader.DefaultModelLoader()
    assert [seen(same, weights).digest(), seen(same, other).digest()] == [digest(weights), digest(other)]
    same._prepare_weights(weights)  # for whatever: nobody loads


def test_loaders_that_may_read_more_are_not_trusted(loader: ModuleType, weights: Path):
    assert seen(loader.Fancy(), weights) is None
    assert seen(loader.DefaultModelLoader("npcache"), weights) is None
    model = torch.nn.Linear(1, 1)
    loader.Random().load_weights(model, None)
    assert load_of(model) is None and load_of(torch.nn.Linear(1, 1)) is None


def test_random_weights_are_known_to_be_vllms(loader: ModuleType):
    model = torch.nn.Linear(1, 1)
    assert loader.DummyModelLoader().load_weights(model, None) == "made up"
    assert load_of(model).random


def test_nothing_is_read_twice_where_weights_lie_on_a_gpu(loader: ModuleType, weights: Path):
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(is_cuda=True)])
    loader.DefaultModelLoader().load_weights(model, [weights])
    assert not any(known is model for known in loads._loads)


def test_files_replaced_while_they_were_loaded_have_no_name(loader: ModuleType, weights: Path):
    def replace() -> None:
        (weights / "new").write_bytes(b"c")
        (weights / "new").replace(weights / "b.safetensors")

    load = seen(loader.DefaultModelLoader(during=replace), weights)
    assert load.digest() == "" and load.problem == CHANGED


def test_a_link_that_moves_on_while_files_are_loaded_leaves_them_without_a_name(
    loader: ModuleType, weights: Path, tmp_path: Path
):
    """Some may have been opened here, and some there."""
    (newer := tmp_path / "newer").mkdir()
    for path in weights.iterdir():
        (newer / path.name).write_bytes(b"newer")
    current, following = tmp_path / "current", tmp_path / "following"
    current.symlink_to("weights")
    following.symlink_to("newer")
    load = seen(loader.DefaultModelLoader(during=lambda: following.replace(current)), current)
    assert load.digest() == "" and load.problem == CHANGED
    assert seen(loader.DefaultModelLoader(), current).digest() == digest(newer)


def test_files_that_go_away_once_they_were_loaded_keep_their_name(loader: ModuleType, weights: Path):
    """As when a link to the newest checkpoint moves on, and the old one is removed."""
    expected = digest(weights)
    load = seen(loader.DefaultModelLoader(), weights)
    found = load.digest()
    for path in weights.iterdir():
        path.unlink()
    assert found == expected


def test_files_that_cannot_be_opened(loader: ModuleType, weights: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        load = seen(loader.DefaultModelLoader(), weights)
    assert load.digest() == "" and "Too many open files" in load.problem


def test_no_descriptor_stays_open(loader: ModuleType, weights: Path):
    def failing() -> None:
        raise RuntimeError("out of memory, say")

    load = seen(loader.DefaultModelLoader(), weights)
    load.digest()
    assert all(file.fd < 0 for file in load._files)
    with pytest.raises(RuntimeError):
        loader.DefaultModelLoader(during=failing).load_weights(model := torch.nn.Linear(1, 1), [weights])
    assert load_of(model) is None
    open_files = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert not [path for path in open_files if str(weights) in path]
