"""Hears of what may change a model's weights in vLLM's worker, which tells no connector.

The methods of the worker's class are wrapped (``collective_rpc`` finds them by name), those of the operator's extension
of it among them, and ``load_weights`` of the model itself, which code that is sent over ``collective_rpc`` calls. Such
code is not heard where it writes into parameters itself.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import weakref
from typing import Any, Protocol

CHANGERS = (
    "load_model",
    "reload_weights",
    "start_weight_update",
    "start_draft_weight_update",
    "update_weights",
    "finish_weight_update",
    "reset_weights",
    "apply_model",
    "sleep",
    "wake_up",
    "checkpoint_restore",
    "elastic_ep_execute",
)
READY = "compile_or_warm_up_model"  # called once, when the worker has its model and its connector
_MARK = "_kvmarket_listeners"


class Listener(Protocol):
    """Who hears of a worker of vLLM."""

    def ready(self, worker: Any) -> None:
        """The worker has its model."""

    def changing(self, worker: Any) -> None:
        """The weights of the worker's model may change right after this."""


def watch(parallel_config: Any, listener: Listener) -> None:
    """Have `listener` hear of this process's worker, for as long as somebody else holds it."""
    worker = _named(parallel_config.worker_cls)
    if _MARK not in vars(worker):
        setattr(worker, _MARK, weakref.WeakSet())
        extension = getattr(parallel_config, "worker_extension_cls", "")
        own = [name for name in dir(_named(extension)) if not name.startswith("__")] if extension else []
        for name in sorted({*CHANGERS, *own}):
            _precede(worker, name, "changing")
        _precede(worker, READY, "ready")
    getattr(worker, _MARK).add(listener)


def follow_loads(model: Any, listener: Listener, worker: Any) -> None:
    """Have `listener` hear of weights that are loaded into this model by whoever has got hold of it."""
    load = getattr(model, "load_weights", None)
    if load is None:
        return
    heard, loading = weakref.ref(listener), weakref.ref(worker)

    @functools.wraps(load)
    def load_weights(*args: Any, **kwargs: Any) -> Any:
        hearer = heard()
        if hearer is not None:
            hearer.changing(loading())
        return load(*args, **kwargs)

    model.load_weights = load_weights


def _named(name: str) -> type[Any]:
    """The class of this qualified name."""
    module, _, attribute = name.rpartition(".")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


def _precede(worker_class: type[Any], name: str, event: str) -> None:
    """Wrap a method, where the class has it: the listeners hear of `event` before it runs."""
    method = inspect.getattr_static(worker_class, name, None)
    if not inspect.isfunction(method):
        return

    @functools.wraps(method)
    def wrapped(worker: Any, *args: Any, **kwargs: Any) -> Any:
        for listener in list(getattr(worker_class, _MARK)):
            getattr(listener, event)(worker)
        return method(worker, *args, **kwargs)

    setattr(worker_class, name, wrapped)
