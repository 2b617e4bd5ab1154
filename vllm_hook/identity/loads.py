"""Records which files vLLM reads a model's weights from: for builds of vLLM that hide the weights after loading.

The plugin calls `watch` in each process before a model is loaded. `watch` wraps methods of vLLM's loaders when these
are imported; it does not import them.
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
_ELSEWHERE = ("npcache",)  # load formats for which vLLM's default loader reads other files than it lists
_loads: weakref.WeakKeyDictionary[torch.nn.Module, Load] = weakref.WeakKeyDictionary()


class Load:
    """One load of a model: either `random` weights, or files, of which `digest` returns the digest."""

    def __init__(self, random: bool = False) -> None:
        self.random = random
        self.problem = ""
        self._files: list[WeightFile] = []
        self._digest: Future[str] | None = None

    def reads(self, paths: Sequence[str]) -> None:
        """Open the files that vLLM is about to read; an OSError goes into `problem`."""
        try:
            self._files += [WeightFile(path) for path in paths]
        except OSError as error:
            self.problem = unreadable(error)

    def read(self) -> None:
        """Compute the files' digest on a thread, which then closes them. Call it when vLLM has read all of them."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="kvmarket-weights")
        self._digest = pool.submit(self._take_digest)
        pool.shutdown(wait=False)

    def digest(self) -> str:
        """Wait for the digest of the files and return it; empty if unknown, then `problem` may say why."""
        return self._digest.result() if self._digest is not None else ""

    def close(self) -> None:
        """Close the files."""
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
    """The recorded load of this model; None for another loader, for files on a GPU, and for loads before `watch`."""
    return _loads.get(model)


@functools.cache
def watch() -> None:
    """Record the loads of this process from now on. Costs next to nothing; a second call does nothing."""
    _when_imported(f"{_LOADERS}.default_loader", _watch_default)
    _when_imported(f"{_LOADERS}.dummy_loader", _watch_random)


def _watch_default(module: ModuleType) -> None:
    """Record which files vLLM's default loader reads. Subclasses are left out: they may do more with the files."""
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
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())  # there no weights are hidden
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
    """Record that vLLM's dummy loader made random weights."""
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
    """An import hook for one module, once: the usual finders find it, and `do` is called with it after its import."""

    def __init__(self, name: str, do: Callable[[ModuleType], None]) -> None:
        self._name, self._do = name, do

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Remove this hook, let the usual finders find the module, and add `do` to its loader."""
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
    """Call `do` with this module: now if it is imported already, else right after its import."""
    if name in sys.modules:
        do(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, do))
