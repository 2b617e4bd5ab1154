"""Notifies listeners before vLLM's worker may change its model's weights: vLLM tells no connector of that.

Wrapped are methods of the worker class (``collective_rpc`` finds them by name), those of the operator's worker
extension included, and ``load_weights`` of the model, which code sent over ``collective_rpc`` may call. Code that
writes into parameters directly is not noticed.
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
    """An object that is notified of events of vLLM's worker."""

    def ready(self, worker: Any) -> None:
        """The worker has its model."""

    def changing(self, worker: Any) -> None:
        """The weights of the worker's model may change right after this."""


def watch(parallel_config: Any, listener: Listener) -> None:
    """Notify `listener` of this process's worker. It is held by a weak reference: the caller must keep it alive."""
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
    """Call `listener.changing(worker)` before ``model.load_weights``, whoever calls that. Both are held weakly."""
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
    """Import the class with this qualified name."""
    module, _, attribute = name.rpartition(".")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


def _precede(worker_class: type[Any], name: str, event: str) -> None:
    """Wrap a method, if the class has it: `event` of each listener is called before the method runs."""
    method = inspect.getattr_static(worker_class, name, None)
    if not inspect.isfunction(method):
        return

    @functools.wraps(method)
    def wrapped(worker: Any, *args: Any, **kwargs: Any) -> Any:
        for listener in list(getattr(worker_class, _MARK)):
            getattr(listener, event)(worker)
        return method(worker, *args, **kwargs)

    setattr(worker_class, name, wrapped)
