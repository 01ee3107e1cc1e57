"""Names of denoisers' arguments, from the signatures of diffusers' unets, transformers and control networks."""

__all__ = ["HIDDEN", "STATES", "TOKENS", "per_row", "register_argument", "shared"]


def _words(text: str) -> set[str]:
    return set(text.split())


HIDDEN = ("hidden_states", "sample", "noisy_latents")
"""The argument that carries the state, in the order looked for; else the first tensor argument."""

STATES = frozenset(HIDDEN) | _words(
    """
    audio_hidden_states down_block_additional_residuals mid_block_additional_residual block_controlnet_hidden_states
    controlnet_block_samples controlnet_single_block_samples tokens
    """
)
"""Arguments that are functions of the particle's state, so that they differ from row to row."""

TOKENS = _words("img_ids txt_ids image_cond_ids")
"""(tokens, axes), shared by all rows, or (rows, tokens, axes)."""

_TIME = _words(
    """
    timestep timesteps t timestep_cond timestep_r r_timestep timestep_ratio audio_timestep sigma audio_sigma
    additional_t_cond target_timestep guidance fps ofs
    """
)
_TEXT = _words(
    """
    encoder_hidden_states encoder_hidden_states_t5 encoder_hidden_states_2 encoder_hidden_states_image
    encoder_attention_mask encoder_attention_mask_2 encoder_hidden_states_mask encoder_mask attention_mask
    text_embedding_mask text_embedding_mask_t5 pooled_projections pooled_embeds pooled_text_emb global_hidden_states
    audio_encoder_hidden_states audio_encoder_attention_mask clip_text_pooled clip_text clip_img text_embeds
    proj_embedding prior_token_id prior_token_drop hidden_states_masks input_ids position_ids
    """
)
_LABELS = _words(
    """
    class_labels labels added_time_ids time_ids micro_conds image_meta_size style original_size target_size crop_coords
    resolution aspect_ratio img_sizes video_coords audio_coords perturbation_mask sca crp
    """
)
_IMAGES = _words(
    """
    image_embeds image_embeddings image_latents effnet pixels controlnet_cond control_type conditioning_mask
    condition_mask padding_mask down_intrablock_additional_residuals control_hidden_states context_latents
    inpaint_latents control_latents latent_cond hint id_cond id_vit_hidden ip_adapter_image_embeds ip_hidden_states
    pose_hidden_states face_pixel_values boxes positive_embeddings masks
    """
)
_PER_ROW = set(STATES) | _TIME | _TEXT | _LABELS | _IMAGES
_SHARED = _words(
    """
    image_rotary_emb video_rotary_emb rotary_embedding rope_interpolation_scale visual_rope_pos text_rope_pos
    img_shapes txt_seq_lens skip_layers scale scale_factor conditioning_scale control_hidden_states_scale
    controlnet_mode control_type_idx ip_adapter_masks sparse_params num_frames height width patch_size
    """
)


def per_row(name: str) -> bool:
    """Tensors under this name have a fixed number of entries for every row of the hidden states."""
    return name in _PER_ROW


def shared(name: str) -> bool:
    """Tensors under this name belong to all rows."""
    return name in _SHARED


def register_argument(name: str, *, per_row: bool) -> None:
    """Tell how an argument of a denoiser that is not known here is cut.

    Args:
        name: of the argument, or of the entry in a dictionary argument such as ``added_cond_kwargs``.
        per_row: its tensors have one entry (or a fixed number of them) for every row of the hidden states; otherwise
            they belong to all rows.
    """
    (_PER_ROW if per_row else _SHARED).add(name)
    (_SHARED if per_row else _PER_ROW).discard(name)
