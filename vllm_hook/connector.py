"""The connector that vLLM creates in the scheduler and in each worker: it delegates, mostly in a `Guard`."""

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
loads.watch()  # for the process that makes the engine's configuration; in others the plugin calls it


class KVMarketConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Offers finished prefix blocks to the other engines of the node, in place, and imports theirs before a prefill.

    Settings (``kv_connector_extra_config``): ``address`` of the market's socket, ``tenant`` of this engine,
    ``programs`` (SMs that a fetch may use), ``wait_tokens`` (a request waits for a peer that computes at least so many
    of its tokens), ``min_tokens`` (smallest import), ``any_gpu`` (share with other types of GPU), ``block_outermost``
    (ask vLLM for that KV layout), ``force`` (accept any ``kv_load_failure_policy``).
    Raises MisuseError for wrong settings. With a configuration that is not supported it does nothing but log why.
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
        self._compared: Mapping[str, object] = {}  # facts of the fingerprint without weights and code, once known
        compat.keep_joint_lookup()  # needed by an inert connector too
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
        """False: blocks that are lost are computed again."""
        return False

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        """The KV cache layout with the fastest fetches, or None; vLLM may take another one."""
        return limits.layout_asked_for(vllm_config)

    def make_worker(self) -> WorkerSide:
        """Make the worker side of this rank."""
        return WorkerSide(self._vllm_config, self._kv_cache_config, self._refusal, self._settings.programs)

    # ---- worker side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Take the engine's KV tensors, by layer name, and share them with the node."""
        if self._worker:
            with Guard("register_kv_caches", self._worker.refuse):
                self._worker.register(kv_caches)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """This rank's `RankMemory` for the scheduler; None in the scheduler."""
        if not self._worker:
            return None
        memory = None
        with Guard("get_handshake_metadata", self._worker.refuse):
            memory = self._worker.handshake()
        return memory or self._worker.handshake()

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """Take the step's metadata; note which weights the step computes with."""
        super().bind_connector_metadata(connector_metadata)
        if self._worker:
            with Guard("bind_connector_metadata", self._worker.refuse):
                self._worker.begin()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Start this step's loads; returns without waiting for them."""
        metadata = self._connector_metadata
        if self._worker and isinstance(metadata, StepMetadata):
            with Guard("start_load_kv", self._worker.failed):
                self._worker.start(metadata)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """(None, requests whose load has ended, successful or not, since the last call)."""
        if not self._worker:
            return None, None
        metadata = self._connector_metadata
        with Guard("get_finished", self._worker.failed):
            self._worker.poll(metadata if isinstance(metadata, StepMetadata) else None)
        return None, self._worker.take_finished() or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Pages that loads could not fill since the last call; vLLM computes them again."""
        return self._worker.take_bad() if self._worker else set()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """A `StepDone` for this step: it tells the scheduler that the step is back, and its weights."""
        metadata = self._connector_metadata
        if not self._worker or not isinstance(metadata, StepMetadata):
            return None
        return self._worker.done(metadata)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: loads are asynchronous."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Do nothing: blocks are offered in place."""

    def wait_for_save(self) -> None:
        """Do nothing: blocks are offered in place."""

    # ---- scheduler side

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """Take vLLM's block pool: it reports reuse of pages and resets of the prefix cache."""
        if self._scheduler:
            with Guard("bind_gpu_block_pool", self._scheduler.fail):
                self._scheduler.bind_pool(gpu_block_pool)

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        """Join the market with the memory of every rank, of an engine without pipeline stages."""
        self.set_xfer_handshake_metadata_pp_aware({(0, rank): memory for rank, memory in metadata.items()})

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Join the market with the memory of every rank, by (pipeline stage, rank in the stage)."""
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
        """Make the control half for the memory of all ranks. Runs on the joining thread; may start the service.

        Raises what `ControlHalf` raises.
        """
        compared, weights = self._compared_with(ranks), facts.weights_now(ranks)
        _log.debug("kvmarket compares %s", json.dumps({**compared, "weights": weights}, sort_keys=True))
        fingerprint = facts.with_weights(compared, weights)
        stages, own, label = facts.stages_of(ranks), self._settings, labels.label_of(self._vllm_config)
        return ControlHalf(stages, fingerprint, own.tenant, own.address, finds_own=False, label=label)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """(tokens beyond the local hit that peers hold, whether to load them asynchronously); (None, _): ask again."""
        answer: tuple[int | None, bool] = (0, False)
        if self._scheduler:
            with Guard("get_num_new_matched_tokens", self._scheduler.fail):
                answer = self._scheduler.match(request, num_computed_tokens)
        return answer

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Plan the load of `num_external_tokens` into the request's new pages; retire those pages."""
        if self._scheduler:
            with Guard("update_state_after_alloc", self._scheduler.fail):
                self._scheduler.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Make the next step's metadata; retire the pages that the step will overwrite."""
        if not self._scheduler:
            return StepMetadata(0)
        metadata = None
        with Guard("build_connector_meta", self._scheduler.fail):
            metadata = self._scheduler.dispatch(scheduler_output)
        return metadata or self._scheduler.plain_step()

    def update_connector_output(self, connector_output: Any) -> None:
        """A step's output is back: offer the blocks that the step completed."""
        if self._scheduler:
            with Guard("update_connector_output", self._scheduler.fail):
                self._scheduler.returned(connector_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """A request is over: vLLM may free its pages at once. Their offers stay until vLLM reuses the pages."""
        if self._scheduler:
            with Guard("request_finished", self._scheduler.fail):
                self._scheduler.finished(request.request_id)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """`request_finished`, as vLLM calls it for connectors that support hybrid models."""
        return self.request_finished(request, [])

    def reset_cache(self) -> bool | None:
        """Kill all offers: vLLM resets its prefix cache. Not guarded: a failure to kill them must stop the engine."""
        if self._scheduler:
            self._scheduler.invalidate("reset_cache")
        return True

    # ---- statistics

    def get_kv_connector_stats(self) -> MarketStats | None:
        """Counts of this process since the last call, None without any; vLLM asks both sides once a step."""
        return OF_PROCESS.take(self._worker.take_seconds() if self._worker else ())

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> MarketStats:
        """Rebuild an engine's statistics in the process that logs them."""
        return MarketStats(data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: Mapping[type, Any],
        labelnames: Sequence[str],
        per_engine_labelvalues: Mapping[int, Sequence[object]],
    ) -> MarketProm:
        """Make the metrics of `vllm_hook.metrics.metrics` on vLLM's ``/metrics`` page."""
        return MarketProm(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """Leave the market and release its memory."""
        if self._scheduler:
            self._scheduler.close()
        if self._worker:
            self._worker.close()

    def _compared_with(self, ranks: Sequence[RankMemory]) -> Mapping[str, object]:
        """The facts of the engine's fingerprint without weights and code; computed once."""
        self._compared = self._compared or facts.compared(self._vllm_config, ranks, self._settings.any_gpu)
        return self._compared

    def _unfit(self, ranks: Sequence[RankMemory]) -> str:
        """Why this engine can never join any market; empty when it can."""
        try:
            facts.stages_of(ranks)
            check_identity(Fingerprint.of(**self._compared_with(ranks)), self._settings.tenant)
        except MisuseError as error:
            return str(error)
        reason = tenant_refusal(self._settings.tenant, None)
        return f"{reason}; give another tenant" if reason else ""

    def _on(self, control: ControlHalf) -> None:
        """Log what is on: the engine has joined the market, or its first peer engine has."""
        if self._scheduler:
            summary.on(self._scheduler.describe(control))

    def _cannot_join(self, reason: str, error: Exception | None) -> None:
        """Log and count an exception that was raised before the first attempt to join."""
        if self._scheduler:
            self._scheduler.fail(reason)
        why = f"{reason}: {error}"
        summary.off(f"it could not prepare to join the market; report the traceback that is logged with this: {why}")
