"""The name of the weights that one rank has loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from vllm_hook.engine import compat
from vllm_hook.identity.code import code_of
from vllm_hook.identity.files import ChangedError, WeightFile, digest_of, unreadable
from vllm_hook.identity.group import name_of_group
from vllm_hook.identity.loads import load_of
from vllm_hook.identity.tensors import checksum_of

UNSEEN = (
    "this build hides weights once they are loaded, and nobody saw what was read: have vLLM load the plugin kvmarket "
    "(VLLM_PLUGINS must name it, if it is set), and let vLLM's own loader read files (not load_format npcache, say)"
)


class Weights(NamedTuple):
    """What tells weights from others: `name`, or the `reason` why there is none; and what the model's code is.

    Equal names mean equal weights, wherever they came from. `code` is empty where all of it is vLLM's.
    """

    name: str
    reason: str = ""
    code: str = ""


UNKNOWN = Weights("")


def name_as_loaded(model: torch.nn.Module, worker: Any) -> Weights:
    """Which weights this worker of vLLM has, now that they are loaded.

    A checksum of them, where it can be seen what they are: costs some ms on a GPU. Else a digest of the files that they
    were read from: costs nothing if these were read before, else 0.1 s a GB of them, less what has passed since.
    """
    config, load = worker.vllm_config, load_of(model)
    name, reason = checksum_of(model), UNSEEN
    if not name and load is not None:
        found = _random(config) if load.random else _of_files(load.digest(), load.problem)
        name, reason = found.name, found.reason
    if not name:
        return Weights("", reason)
    return Weights(name_of_group(name, config), code=code_of(model, worker))


def weights_of(vllm_config: Any) -> Weights:
    """Which weights a configuration names, by what lies there now: for whoever has no engine that loaded them.

    Costs a read of the files that vLLM would load, unless they were read before.
    """
    if str(vllm_config.load_config.load_format) == "dummy":
        return _random(vllm_config)
    model = vllm_config.model_config.model
    if not Path(model).exists():
        return Weights("", f"no files lie at {model}; give a folder or a file of weights")
    paths = compat.weight_files(model, str(vllm_config.load_config.load_format))
    if not paths:
        return Weights("", f"vLLM's loader finds no weights at {model}; give a folder or a file of weights")
    files: list[WeightFile] = []
    try:
        for path in paths:
            files.append(WeightFile(path))
        return _of_files(digest_of(files), "")
    except ChangedError as error:
        return Weights("", str(error))
    except OSError as error:
        return Weights("", unreadable(error))
    finally:
        for file in files:
            file.close()


def _random(vllm_config: Any) -> Weights:
    """Weights that vLLM makes up: the same for the same configuration, all of which counts, and seed."""
    return Weights(f"dummy, seed {vllm_config.model_config.seed}")


def _of_files(digest: str, problem: str) -> Weights:
    return Weights(f"files {digest}") if digest else Weights("", problem or UNSEEN)
