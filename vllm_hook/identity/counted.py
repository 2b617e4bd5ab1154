"""Fields of vLLM's configuration that were reviewed and count in the fingerprint, by class, for vLLM 0.26 to 0.33.

Only a test reads this: it lists the fields of the installed vLLM's classes that are neither here nor in `harmless`.
Such fields count too, until somebody has reviewed them.
"""

from __future__ import annotations

_FIELDS = {
    "VllmConfig": (
        "model_config cache_config parallel_config load_config attention_config engram_config mamba_config "
        "kernel_config lora_config speculative_config diffusion_config quant_config compilation_config "
        "additional_config"
    ),
    "ModelConfig": (
        "runner convert dtype hf_config hf_text_config is_submodel_config word_embeddings_untied_by_checkpoint "
        "spec_target_max_model_len quantization quantization_config disable_sliding_window disable_cascade_attn "
        "model_class_overrides model_impl override_attention_dtype multimodal_config"
    ),
    "MultiModalConfig": (
        "language_model_only enable_mm_embeds media_io_kwargs mm_processor_kwargs mm_device_do_normalize "
        "mm_hasher_algorithm mm_encoder_only mm_encoder_tp_mode mm_encoder_attn_backend mm_encoder_attn_dtype "
        "mm_encoder_fp8_scale_path interleave_mm_strings video_pruning_rate video_pruning_method "
        "allow_missing_mm_embeddings"
    ),
    "CacheConfig": (
        "block_size cache_dtype is_attention_free sliding_window calculate_kv_scales kv_cache_dtype_skip_layers "
        "mamba_page_size_padded skip_page_size_padded mamba_block_size mamba_cache_dtype mamba_ssm_cache_dtype "
        "mamba_cache_mode replayssm_buffer_len use_replayssm use_kda_recoverssm effective_attention_block_size "
        "kv_sharing_fast_prefill swa_bounded_replay"
    ),
    "ParallelConfig": (
        "pipeline_parallel_size tensor_parallel_size prefill_context_parallel_size is_moe_model enable_hc_sp "
        "enable_expert_parallel enable_eplb eplb_config expert_placement_strategy all2all_backend "
        "disable_custom_all_reduce enable_elastic_ep worker_cls worker_extension_cls decode_context_parallel_size "
        "dcp_kv_cache_interleave_size dcp_comm_backend dcp_q_replicate cp_kv_cache_interleave_size"
    ),
    "EPLBConfig": "num_redundant_experts policy",
    "LoadConfig": "model_loader_extra_config",
    "AttentionConfig": (
        "minimax_m3_msa_decode_backend flash_attn_version flash_attn_max_num_splits_for_cuda_graph "
        "tokenspeed_mla_min_split_kv tq_max_kv_splits_for_cuda_graph use_trtllm_attention "
        "use_prefill_decode_attention disable_flashinfer_q_quantization mla_prefill_backend "
        "use_prefill_query_quantization use_fp4_indexer_cache indexer_kv_dtype indexer_sparse_logits hisparse_config "
        "use_non_causal sparse_mla_force_mqa sparse_mla_prefill_workspace_factor flex_attn_block_m flex_attn_block_n "
        "flex_attn_q_block_size flex_attn_kv_block_size trtllm_ragged_backend indexer_tp_shard_min_rows "
        "minimax_m3_indexer_cp"
    ),
    "HiSparseConfig": "device_buffer_size eager_host_mirror",
    "EngramConfig": "cpu_offload embedding_across_dp dp_shared_memory use_thp",
    "MambaConfig": "backend enable_stochastic_rounding stochastic_rounding_philox_rounds ssu_algorithm",
    "KernelConfig": (
        "ir_op_priority enable_flashinfer_autotune enable_rocm_segmented_attn_autotune enable_bf16x3_router_gemm "
        "moe_backend sparse_indexer_topk_backend linear_backend linear_backend_per_quant monokernel"
    ),
    "IrOpPriorityConfig": "rms_norm fused_add_rms_norm gelu_and_mul_sparse",
    "LoRAConfig": (
        "fully_sharded_loras lora_dtype target_modules enable_tower_connector_lora specialize_active_lora "
        "enable_mixed_moe_lora_format enable_moe_shared_loras"
    ),
    "SpeculativeConfig": (
        "enforce_eager num_speculative_tokens model method draft_tensor_parallel_size tensor_parallel_size "
        "quantization moe_backend attention_backend kv_cache_dtype max_model_len revision code_revision "
        "index_share_for_mtp_iteration disable_padded_drafter_batch disable_eagle_block_drop "
        "use_local_argmax_reduction use_heterogeneous_vocab prompt_lookup_max prompt_lookup_min "
        "parallel_drafting target_model_config "
        "target_parallel_config num_speculative_tokens_per_batch_size draft_model_config draft_parallel_config "
        "suffix_decoding_max_tree_depth suffix_decoding_max_cached_requests suffix_decoding_max_spec_factor "
        "suffix_decoding_min_token_prob draft_load_config rejection_sample_method synthetic_acceptance_rates "
        "synthetic_acceptance_length enable_adaptive_verification draft_sample_method dspark_draft_topk "
        "disable_lookahead_block_hashes draft_lm_head_quantization xpress_topc fly_window_size fly_entropy_threshold "
        "fly_entropy_top_k"
    ),
    "DiffusionConfig": "canvas_length max_denoising_steps",
    "CompilationConfig": (
        "mode backend custom_ops ir_enable_torch_wrap splitting_ops compile_mm_encoder inductor_compile_config "
        "inductor_passes use_inductor_graph_partition pass_config dynamic_shapes_config fast_moe_cold_start"
    ),
    "PassConfig": (
        "fuse_norm_quant fuse_act_quant fuse_attn_quant eliminate_noops enable_sp fuse_gemm_comms fuse_allreduce_rms "
        "enable_qk_norm_rope_fusion fuse_rope_kvcache_cat_mla fuse_act_padding fuse_mla_dual_rms_norm "
        "fuse_rope_kvcache fuse_qk_norm_rope_kvcache"
    ),
    "DynamicShapesConfig": "type evaluate_guards assume_32_bit_indexing",
    "QuantizationConfigArgs": "linear moe ignore targets",
    "QuantSpec": "weight activation",
}
COUNTED: dict[str, frozenset[str]] = {name: frozenset(fields.split()) for name, fields in _FIELDS.items()}
