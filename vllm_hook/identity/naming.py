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
    """The identity of weights: `name`, or the `reason` why it is unknown; and `code`, the digest of the model's code.

    Equal names mean equal weights, wherever they came from. `code` is empty if all code is vLLM's.
    """

    name: str
    reason: str = ""
    code: str = ""


UNKNOWN = Weights("")


def name_as_loaded(model: torch.nn.Module, worker: Any) -> Weights:
    """Name the weights that this worker of vLLM has loaded.

    The name is a checksum of the tensors if they are visible: 13 ms for 16 GB on an H200, and 2.5 s the first time in a
    process, for its kernel (bench/results/h200x1-weights.json). Else it is the digest of the files that they were read
    from: this waits until the digest is ready (see `digest_of`). Raises FingerprintError as `code_of` does, and what
    the store of `name_of_group` raises.
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
    """Name the weights that a configuration would load now; for callers that have no engine with loaded weights.

    Reads the files that vLLM would load, unless their digests are cached. `code` stays empty.
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
    """Name random weights by their seed; with an equal configuration, which counts too, equal seeds give equal ones."""
    return Weights(f"dummy, seed {vllm_config.model_config.seed}")


def _of_files(digest: str, problem: str) -> Weights:
    return Weights(f"files {digest}") if digest else Weights("", problem or UNSEEN)
