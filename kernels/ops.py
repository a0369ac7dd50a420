"""The operations in Triton, on CUDA tensors (or CPU tensors in Triton's interpreter); bits as in the reference."""

from __future__ import annotations

import sys

from dca_fast.ops import Ops, collect
from dca_fast.ops.reference import (  # a few launches of PyTorch each; exact on a GPU as well
    arrays,
    coarseness_factors,
    hyper_symbols,
    hyper_values,
    luma,
    squared_error,
)

from .attention import token_attention, token_block, window_attention, window_block
from .gemm import (
    block,
    decoded_linear,
    depth_block,
    depthwise3x3,
    gated_ffn,
    head_params,
    linear_act,
    linear_add,
    linear_gate,
    wide_linear,
    wide_pixels,
)
from .pointwise import (
    act_slope,
    add,
    add_slope,
    coarseness,
    coarser_rows,
    depth_to_space2,
    gate_slope,
    image_from_patches,
    neighbour_mean,
    operand8,
    operand16,
    pad_edges,
    patches_from_image,
    quadtree_gather,
    reconstruct,
    residuals,
    restore,
    restore_sums,
    space_to_depth2,
)

__all__ = [
    "OPS",
    "act_slope",
    "add",
    "add_slope",
    "arrays",
    "block",
    "coarseness",
    "coarseness_factors",
    "coarser_rows",
    "decoded_linear",
    "depth_block",
    "depth_to_space2",
    "depthwise3x3",
    "gate_slope",
    "gated_ffn",
    "head_params",
    "hyper_symbols",
    "hyper_values",
    "image_from_patches",
    "linear_act",
    "linear_add",
    "linear_gate",
    "luma",
    "neighbour_mean",
    "operand8",
    "operand16",
    "pad_edges",
    "patches_from_image",
    "quadtree_gather",
    "reconstruct",
    "residuals",
    "restore",
    "restore_sums",
    "space_to_depth2",
    "squared_error",
    "token_attention",
    "token_block",
    "wide_linear",
    "wide_pixels",
    "window_attention",
    "window_block",
]

OPS: Ops = collect("triton", sys.modules[__name__])
