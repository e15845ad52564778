"""The quantization grids in NumPy: codes, steps, packed storage. The oracle of every test, and what is written into the IR.

A grid of b bits is symmetric: the codes -L … L with L = 2^(b-1) - 1, times one step per output channel. Two bits are
therefore ternary (-1, 0, 1). The code -2^(b-1) is not used, so that a channel may change its sign (a negative batch-norm
scale that is folded into the weight) and stay on its grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Fractions of a channel's largest weight that are tried as the end of its grid."""
TINY = 1e-12


def largest_code(bits: int) -> int:
    """L, the largest code of a symmetric grid of `bits` bits (2 ≤ bits ≤ 8)."""
    return (1 << (bits - 1)) - 1


def quantize(weight: NDArray[np.floating], step: NDArray[np.floating], bits: int) -> NDArray[np.int8]:
    """Nearest codes of a weight; `step` broadcasts against it."""
    limit = largest_code(bits)
    return np.clip(np.round(weight / step), -limit, limit).astype(np.int8)


def steps(weight: NDArray[np.floating], bits: int, axis: int = 0) -> NDArray[np.float32]:
    """One step per channel of `axis`, shaped to broadcast against the weight.

    8 and 7 bits reach the largest weight. Fewer bits clip it where that lowers the squared error of the channel.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    reach = np.abs(weight).max(others, keepdims=True) / largest_code(bits) + TINY
    if bits >= 7:
        return np.asarray(reach, np.float32)
    errors = [((quantize(weight, reach * clip, bits) * reach * clip - weight) ** 2).sum(others, keepdims=True) for clip in CLIPS]
    return np.asarray(reach * np.asarray(CLIPS)[np.argmin(errors, axis=0)], np.float32)


def largest_magnitudes(weight: NDArray[np.floating], sparsity: float) -> NDArray[np.bool_]:
    """A mask that keeps all but the `sparsity` fraction of smallest magnitudes; exactly round(sparsity · size) are False."""
    mask = np.ones(weight.size, dtype=bool)
    mask[np.argsort(np.abs(weight), axis=None, kind="stable")[: round(sparsity * weight.size)]] = False
    return mask.reshape(weight.shape)


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Codes as the bytes of an OpenVINO tensor with elements of 4 or 2 bits, lowest bits first; padded to whole bytes.

    For 2 bits the caller stores unsigned elements, so the codes given here are already shifted to 0 … 3.
    """
    per_byte = 8 // bits
    flat = codes.reshape(-1).astype(np.uint8) & (2**bits - 1)
    flat = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    packed = np.zeros(len(flat), dtype=np.uint8)
    for i in range(per_byte):
        packed |= flat[:, i] << (i * bits)
    return packed
