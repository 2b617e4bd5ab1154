"""Sees which files vLLM reads a model's weights from: for builds that hide the weights once they are loaded.

The plugin has `watch` called in each process before a model is loaded. It touches vLLM's loaders when these are
imported, and imports nothing itself.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from vllm_hook.identity.files import ChangedError, WeightFile, digest_of, unreadable

_LOADERS = "vllm.model_executor.model_loader"
_ATTRIBUTE = "_kvmarket_load"
_ELSEWHERE = ("npcache",)  # formats of vLLM's default loader that read other files than those it lists
_loads: weakref.WeakKeyDictionary[torch.nn.Module, Load] = weakref.WeakKeyDictionary()


class Load:
    """What one load has read: `random` weights, or files whose digest `digest` returns."""

    def __init__(self, random: bool = False) -> None:
        self.random = random
        self.problem = ""
        self._files: list[WeightFile] = []
        self._digest: Future[str] | None = None

    def reads(self, paths: Sequence[str]) -> None:
        """These files are about to be read."""
        try:
            self._files += [WeightFile(path) for path in paths]
        except OSError as error:
            self.problem = unreadable(error)

    def read(self) -> None:
        """All of them have been read. Starts to take their digest, on a thread, and lets go of them then."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="kvmarket-weights")
        self._digest = pool.submit(self._take_digest)
        pool.shutdown(wait=False)

    def digest(self) -> str:
        """The digest of the files, empty where it is not known: `problem` may say why. Waits for it."""
        return self._digest.result() if self._digest is not None else ""

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            file.close()

    def _take_digest(self) -> str:
        try:
            for file in self._files:
                file.check()
            return digest_of(self._files) if self._files and not self.problem else ""
        except ChangedError as error:
            self.problem = str(error)
        except OSError as error:
            self.problem = unreadable(error)
        finally:
            self.close()
        return ""


def load_of(model: torch.nn.Module) -> Load | None:
    """What was read for this model by vLLM's own loaders; None if it was not seen."""
    return _loads.get(model)


@functools.cache
def watch() -> None:
    """See the loads of this process from now on. Costs next to nothing."""
    _when_imported(f"{_LOADERS}.default_loader", _watch_default)
    _when_imported(f"{_LOADERS}.dummy_loader", _watch_random)


def _watch_default(module: ModuleType) -> None:
    """See which files vLLM's default loader reads; loaders that inherit from it may do more with them."""
    loader = module.DefaultModelLoader
    prepare, load_weights = loader._prepare_weights, loader.load_weights

    @functools.wraps(prepare)
    def prepare_seen(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = prepare(self, *args, **kwargs)
        if (load := getattr(self, _ATTRIBUTE, None)) is not None:
            load.reads(found[1])
        return found

    @functools.wraps(load_weights)
    def load_seen(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())  # where nothing is hidden
        if on_gpu or type(self) is not loader or str(self.load_config.load_format) in _ELSEWHERE:
            return load_weights(self, model, *args, **kwargs)
        load = Load()
        setattr(self, _ATTRIBUTE, load)
        with ExitStack() as failed:
            failed.callback(load.close)
            try:
                done = load_weights(self, model, *args, **kwargs)
            finally:
                setattr(self, _ATTRIBUTE, None)
            failed.pop_all()
        load.read()
        _loads[model] = load
        return done

    loader._prepare_weights, loader.load_weights = prepare_seen, load_seen


def _watch_random(module: ModuleType) -> None:
    """See that vLLM made random weights up."""
    loader = module.DummyModelLoader
    load_weights = loader.load_weights

    @functools.wraps(load_weights)
    def load_seen(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        done = load_weights(self, model, *args, **kwargs)
        if type(self) is loader:
            _loads[model] = Load(random=True)
        return done

    loader.load_weights = load_seen


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, once, as everybody else would, and has `do` called with it when it has been imported."""

    def __init__(self, name: str, do: Callable[[ModuleType], None]) -> None:
        self._name, self._do = name, do

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Step aside and look."""
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then(module: ModuleType) -> None:
                execute(module)
                self._do(module)

            spec.loader.exec_module = then  # type: ignore[method-assign]
        return spec


def _when_imported(name: str, do: Callable[[ModuleType], None]) -> None:
    """Have `do` called with this module: now if it is imported already, or when it will be."""
    if name in sys.modules:
        do(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, do))
