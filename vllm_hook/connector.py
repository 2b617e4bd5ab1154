"""The connector that vLLM creates, once in the scheduler and once in each worker. It delegates, and guards."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from kvmarket.errors import MisuseError
from kvmarket.fingerprint import Fingerprint, check_identity
from kvmarket.market.control import ControlHalf
from vllm_hook.engine import compat, facts, labels, limits
from vllm_hook.guard import Guard
from vllm_hook.identity import loads
from vllm_hook.metadata import RankMemory, StepDone, StepMetadata
from vllm_hook.metrics import summary
from vllm_hook.metrics.alone import Alone
from vllm_hook.metrics.first_peer import FirstPeer
from vllm_hook.metrics.prom import MarketProm
from vllm_hook.metrics.stats import OF_PROCESS, MarketStats
from vllm_hook.scheduler.requests import tenant_refusal
from vllm_hook.scheduler.side import SchedulerSide
from vllm_hook.worker.side import WorkerSide

_log = logging.getLogger("vllm.kvmarket")

KVConnectorMetadata.register(StepMetadata)
KVConnectorWorkerMetadata.register(StepDone)
KVConnectorHandshakeMetadata.register(RankMemory)
loads.watch()  # a process that makes the engine's configuration imports this; others load the plugin, which does it too


class KVMarketConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Shares finished prefix blocks with the other engines of the node, in place, and imports theirs before a prefill.

    Settings (``kv_connector_extra_config``): ``address`` of the market's socket, ``tenant`` of this engine,
    ``programs`` (SMs that a fetch may take at a time), ``wait_tokens`` (from how many on a request waits for a peer
    that computes them), ``min_tokens`` (of an import), ``any_gpu`` (share with other models of GPU),
    ``block_outermost`` (ask for that KV layout), ``force``.
    Raises MisuseError for wrong settings; a configuration it does not serve leaves it inert, and the log says why.
    """

    if compat.hit_source() is not None:
        _cache_hit_source = compat.hit_source()

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        own, of_engine = self._kv_transfer_config, compat.transfer_config_of_engine()
        self._settings = limits.settings_of(own, of_engine)
        reason = limits.refusal(vllm_config, kv_cache_config)
        self._refusal = reason or limits.refusal_beside(own, of_engine)
        self._scheduler: SchedulerSide | None = None
        self._first_peer = FirstPeer(self._on, Alone().say)
        self._worker: WorkerSide | None = None
        self._compared: Mapping[str, object] = {}  # all of its fingerprint but the weights, once they are known
        compat.keep_joint_lookup()  # whether this takes part or not
        if role == KVConnectorRole.WORKER:
            self._worker = self.make_worker()
            self._worker.alone = own is of_engine
        elif self._refusal:
            summary.off(self._refusal)
        else:
            self._scheduler = SchedulerSide(
                kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size,
                vllm_config.parallel_config.tensor_parallel_size * vllm_config.parallel_config.pipeline_parallel_size,
                tenant=self._settings.tenant,
                offers=self._kv_transfer_config.is_kv_producer,
                imports=self._kv_transfer_config.is_kv_consumer,
                wait_tokens=self._settings.wait_tokens,
                min_tokens=self._settings.min_tokens,
                speculates=vllm_config.speculative_config is not None,
            )

    @property
    def requires_kv_delivery(self) -> bool:
        """A best-effort cache: what is lost is computed again."""
        return False

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        """The KV cache layout that suits fetches best: a preference, not a requirement."""
        return limits.layout_asked_for(vllm_config)

    def make_worker(self) -> WorkerSide:
        """The worker side of one rank."""
        return WorkerSide(self._vllm_config, self._kv_cache_config, self._refusal, self._settings.programs)

    # ---- worker side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The engine's KV tensors exist: share them."""
        if self._worker:
            with Guard("register_kv_caches", self._worker.refuse):
                self._worker.register(kv_caches)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """What the scheduler must know of this rank."""
        if not self._worker:
            return None
        memory = None
        with Guard("get_handshake_metadata", self._worker.refuse):
            memory = self._worker.handshake()
        return memory or self._worker.handshake()

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """A step begins in the worker."""
        super().bind_connector_metadata(connector_metadata)
        if self._worker:
            with Guard("bind_connector_metadata", self._worker.refuse):
                self._worker.begin()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Start this step's loads; nothing waits."""
        metadata = self._connector_metadata
        if self._worker and isinstance(metadata, StepMetadata):
            with Guard("start_load_kv", self._worker.failed):
                self._worker.start(metadata)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose load has ended, well or not."""
        if not self._worker:
            return None, None
        metadata = self._connector_metadata
        with Guard("get_finished", self._worker.failed):
            self._worker.poll(metadata if isinstance(metadata, StepMetadata) else None)
        return None, self._worker.take_finished() or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Pages that a load could not fill; vLLM computes them again."""
        return self._worker.take_bad() if self._worker else set()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """Which step this output belongs to, and its weights: the scheduler's sign that the step has come back."""
        metadata = self._connector_metadata
        if not self._worker or not isinstance(metadata, StepMetadata):
            return None
        return self._worker.done(metadata)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: loads are asynchronous."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: blocks are offered where they lie."""

    def wait_for_save(self) -> None:
        """Nothing: blocks are offered where they lie."""

    # ---- scheduler side

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """Where reuse and resets can be seen."""
        if self._scheduler:
            with Guard("bind_gpu_block_pool", self._scheduler.fail):
                self._scheduler.bind_pool(gpu_block_pool)

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        """The memory of every rank of an engine without pipeline stages is known: join the market."""
        self.set_xfer_handshake_metadata_pp_aware({(0, rank): memory for rank, memory in metadata.items()})

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """The memory of every rank, by pipeline stage and rank in it, is known: join the market."""
        if not self._scheduler:
            return
        known = [memory for _, memory in sorted(metadata.items()) if isinstance(memory, RankMemory)]
        reason, guard = "", Guard("join", lambda where: self._cannot_join(where, guard.error))
        with guard:
            reason = self._scheduler.refusal(known) or self._unfit(known)
            if not reason:
                self._scheduler.join(dict(enumerate(known)), self.connect, self._first_peer.joined, summary.off_for_now)
        if reason:
            summary.off(reason)

    def connect(self, ranks: Sequence[RankMemory]) -> ControlHalf:
        """Make the control half for the memory of all ranks; on a thread of its own, it may have to start the service.

        Raises what `ControlHalf` raises.
        """
        compared, weights = self._compared_with(ranks), facts.weights_now(ranks)
        _log.debug("kvmarket compares %s", json.dumps({**compared, "weights": weights}, sort_keys=True))
        fingerprint = facts.with_weights(compared, weights)
        stages, own, label = facts.stages_of(ranks), self._settings, labels.label_of(self._vllm_config)
        return ControlHalf(stages, fingerprint, own.tenant, own.address, finds_own=False, label=label)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens beyond the local hit peers hold, loaded asynchronously; None: ask again."""
        answer: tuple[int | None, bool] = (0, False)
        if self._scheduler:
            with Guard("get_num_new_matched_tokens", self._scheduler.fail):
                answer = self._scheduler.match(request, num_computed_tokens)
        return answer

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """A request was given pages."""
        if self._scheduler:
            with Guard("update_state_after_alloc", self._scheduler.fail):
                self._scheduler.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """A step is about to be dispatched."""
        if not self._scheduler:
            return StepMetadata(0)
        metadata = None
        with Guard("build_connector_meta", self._scheduler.fail):
            metadata = self._scheduler.dispatch(scheduler_output)
        return metadata or self._scheduler.plain_step()

    def update_connector_output(self, connector_output: Any) -> None:
        """A step's output is back."""
        if self._scheduler:
            with Guard("update_connector_output", self._scheduler.fail):
                self._scheduler.returned(connector_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """A request is over; its pages may be freed at once, their offers stand until they are reused."""
        if self._scheduler:
            with Guard("request_finished", self._scheduler.fail):
                self._scheduler.finished(request.request_id)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """The same, as vLLM calls it for connectors that support hybrid models."""
        return self.request_finished(request, [])

    def reset_cache(self) -> bool | None:
        """The engine resets its cache and asks its connector to do the same."""
        if self._scheduler:
            self._scheduler.invalidate("reset_cache")
        return True

    # ---- statistics

    def get_kv_connector_stats(self) -> MarketStats | None:
        """What this side has counted since the last call; vLLM asks both sides once a step."""
        return OF_PROCESS.take(self._worker.take_seconds() if self._worker else ())

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> MarketStats:
        """What an engine told, where it is logged."""
        return MarketStats(data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: Mapping[type, Any],
        labelnames: Sequence[str],
        per_engine_labelvalues: Mapping[int, Sequence[object]],
    ) -> MarketProm:
        """The metrics of `vllm_hook.metrics.metrics` on vLLM's page."""
        return MarketProm(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """Leave the market."""
        if self._scheduler:
            self._scheduler.close()
        if self._worker:
            self._worker.close()

    def _compared_with(self, ranks: Sequence[RankMemory]) -> Mapping[str, object]:
        """All of the engine's fingerprint but the weights."""
        self._compared = self._compared or facts.compared(self._vllm_config, ranks, self._settings.any_gpu)
        return self._compared

    def _unfit(self, ranks: Sequence[RankMemory]) -> str:
        """Why this engine can never join, whatever becomes of the market; empty when it can."""
        try:
            facts.stages_of(ranks)
            check_identity(Fingerprint.of(**self._compared_with(ranks)), self._settings.tenant)
        except MisuseError as error:
            return str(error)
        reason = tenant_refusal(self._settings.tenant, None)
        return f"{reason}; give another tenant" if reason else ""

    def _on(self, control: ControlHalf) -> None:
        """The market has been joined, at the engine's start or late; or the first peer engine has come."""
        if self._scheduler:
            summary.on(self._scheduler.describe(control))

    def _cannot_join(self, reason: str, error: Exception | None) -> None:
        """Something raised before the engine could try to join."""
        if self._scheduler:
            self._scheduler.fail(reason)
        why = f"{reason}: {error}"
        summary.off(f"it could not prepare to join the market; report the traceback that is logged with this: {why}")
