"""Fields of vLLM's configuration that change no byte of the KV cache: by class, then by reason.

All other fields count, unless configuration.py says otherwise: there some of these fields count for some models, and
some others never do. Add a field only after a review of what vLLM does with it; `counted` lists those that were
reviewed and do count.
"""

from __future__ import annotations

PLACE = "says where something is, not what it is"
LOADED = "decides how or what to load; the loaded weights count by their content"
LIMITS = "limits the work of a step, which differs from step to step within one engine too"
MEMORY = "how many pages there are, and in which memory"
TOPOLOGY = "which process computes where, and how processes find each other"
WORKER = "each worker reports the outcome among its facts"
OUTPUT = "what is done with tokens and logits"
WATCHING = "logs, metrics, profiles"
HANDLING = "how prefixes are looked up, kept and moved"
REFUSED = "an engine with it is refused"
GRAPHS = "CUDA graphs replay the same kernels"
CACHES = "where and how compiled code is cached"
DERIVED = "follows from fields that count"
ADAPTERS = "blocks of requests with an adapter are not shared"

_BY_REASON: dict[str, dict[str, str]] = {
    "VllmConfig": {
        LIMITS: "scheduler_config",
        MEMORY: "offload_config",
        WORKER: "device_config",
        OUTPUT: "structured_outputs_config reasoning_config watermark_config aux_output_config",
        WATCHING: "observability_config logging_config profiler_config watchdog_config instance_id shutdown_timeout",
        HANDLING: "kv_transfer_config kv_events_config ec_transfer_config ec_manager_config",
        LOADED: "weight_transfer_config",
        DERIVED: "optimization_level performance_mode",
    },
    "ModelConfig": {
        PLACE: "model model_weights hf_config_path config_format revision code_revision hf_token",
        LOADED: "trust_remote_code seed",
        DERIVED: "hf_overrides enforce_eager",
        LIMITS: "max_model_len",
        OUTPUT: (
            "tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init max_logprobs logprobs_mode "
            "use_fp64_gumbel return_sampling_mask generation_config override_generation_config logits_processors "
            "io_processor_plugin renderer_num_workers enable_return_routed_experts allow_deprecated_quantization"
        ),
        WATCHING: "served_model_name enable_trace_replay",
        HANDLING: "allowed_local_media_path allowed_media_domains enable_prompt_embeds",
        REFUSED: (
            "pooler_config enable_sleep_mode sleep_mode_backend sleep_preserve_parameter_names "
            "sleep_mode_offload_cudagraph"
        ),
        MEMORY: "enable_cumem_allocator enable_nccl_comm_suspend",
    },
    "MultiModalConfig": {
        LIMITS: "limit_per_prompt skip_mm_profiling",
        MEMORY: "mm_processor_cache_gb mm_processor_cache_type mm_shm_cache_max_object_size_mb mm_ipc_gpu_memory_gb",
        HANDLING: "mm_tensor_ipc",
        PLACE: "mm_encoder_fp8_scale_save_path mm_encoder_fp8_scale_save_margin",
    },
    "CacheConfig": {
        MEMORY: (
            "gpu_memory_utilization num_gpu_blocks_override num_gpu_blocks num_cpu_blocks kv_cache_size_tokens "
            "kv_cache_max_concurrency kv_cache_memory_bytes kv_offloading_size kv_offloading_backend "
            "simple_cpu_offload_num_blocks"
        ),
        HANDLING: (
            "enable_prefix_caching prefix_caching_hash_algo prefix_cache_retention_interval prefix_match_unit "
            "hash_block_size cache_hit_alignment_tokens enable_mamba_shared_prefix_checkpoint "
            "enable_mamba_fine_grained_prefix_cache"
        ),
        WORKER: "kv_cache_layout",
        DERIVED: "user_specified_block_size user_specified_mamba_block_size _block_size_resolved",
    },
    "ParallelConfig": {
        TOPOLOGY: (
            "data_parallel_size data_parallel_size_local data_parallel_rank data_parallel_rank_local "
            "data_parallel_index data_parallel_master_ip data_parallel_rpc_port data_parallel_master_port "
            "data_parallel_backend data_parallel_external_lb data_parallel_hybrid_lb dp_sync_interval "
            "disable_nccl_for_dp_synchronization ray_workers_use_nsight ray_runtime_env placement_group "
            "distributed_executor_backend master_addr master_port node_rank nnodes numa_bind numa_bind_nodes "
            "numa_bind_cpus assigned_physical_gpu_ids distributed_timeout_seconds cpu_distributed_timeout_seconds "
            "world_size rank _data_parallel_master_port_list _coord_store_port _api_process_count _api_process_rank "
            "enable_shm_tensor_arena elastic_ep_max_dp_size"
        ),
        LOADED: "max_parallel_loading_workers enable_ep_weight_filter",
        LIMITS: "enable_dbo ubatch_size dbo_decode_token_threshold dbo_prefill_token_threshold",
        OUTPUT: "enable_batch_sharded_sampling",
        DERIVED: "_allow_auto_resolve_cp_interleave_size",
        REFUSED: "sd_worker_cls enable_fault_tolerance fault_tolerance_config",
    },
    "EPLBConfig": {
        WATCHING: "log_balancedness log_balancedness_interval",
        TOPOLOGY: "window_size step_interval use_async communicator enable_migration_batching",
    },
    "QuantizationConfig": {DERIVED: "packed_modules_mapping"},
    "OnlineQuantizationConfig": {DERIVED: "quantized_layers", WATCHING: "online_quantization_time"},
    "LoadConfig": {
        LOADED: (
            "load_format download_dir safetensors_load_strategy safetensors_prefetch_num_threads "
            "safetensors_prefetch_block_size device ignore_patterns use_tqdm_on_load pt_load_map_location"
        ),
    },
    "AttentionConfig": {WORKER: "backend backend_per_kind"},
    "KernelConfig": {CACHES: "enable_cutedsl_warmup enable_jit_warmup"},
    "LoRAConfig": {ADAPTERS: "max_lora_rank max_loras max_cpu_loras default_mm_loras max_lora_cls_labels"},
    "CompilationConfig": {
        CACHES: "debug_dump_path cache_dir compile_cache_save_format local_cache_dir traced_files",
        WATCHING: "compilation_time encoder_compilation_time",
        DERIVED: "enabled_custom_ops disabled_custom_ops static_forward_context static_all_moe_layers",
        LIMITS: "compile_sizes compile_ranges_endpoints",
        GRAPHS: (
            "cudagraph_mm_encoder encoder_cudagraph_token_budgets encoder_cudagraph_max_vision_items_per_batch "
            "encoder_cudagraph_max_frames_per_batch cudagraph_decoder_replay decoder_replay_cudagraph_capture_sizes "
            "decoder_replay_trim_threshold cudagraph_mode cudagraph_num_of_warmups cudagraph_capture_sizes "
            "cudagraph_copy_inputs cudagraph_specialize_lora max_cudagraph_capture_size"
        ),
    },
    "PassConfig": {LIMITS: "rope_kvcache_fusion_max_token_num fi_allreduce_fusion_max_size_mb sp_min_token_num"},
}

HARMLESS: dict[str, dict[str, str]] = {
    name: {field: reason for reason, fields in reasons.items() for field in fields.split()}
    for name, reasons in _BY_REASON.items()
}
