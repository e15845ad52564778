"""The quantization grids in NumPy: codes, steps, packed storage. The oracle of every test, and what is written into the IR.

A grid of b bits is symmetric: the codes -L … L with L = 2^(b-1) - 1, times one step per output channel. Two bits are
therefore ternary (-1, 0, 1). The code -2^(b-1) is not used, so that a channel may change its sign (a negative batch-norm
scale that is folded into the weight) and stay on its grid. One bit has the codes -1 and 1 and no zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Fractions of a channel's largest weight that are tried as the end of its grid."""
TINY = 1e-12


def largest_code(bits: int) -> int:
    """L, the largest code of a symmetric grid of `bits` bits (1 ≤ bits ≤ 8)."""
    return max(1, (1 << (bits - 1)) - 1)


def quantize(weight: NDArray[np.floating], step: NDArray[np.floating], bits: int) -> NDArray[np.int8]:
    """Nearest codes of a weight; `step` broadcasts against it. With one bit they are the signs, and the sign of 0 is 1."""
    if bits == 1:
        return np.where(weight < 0, np.int8(-1), np.int8(1))
    limit = largest_code(bits)
    return np.clip(np.round(weight / step), -limit, limit).astype(np.int8)


def steps(weight: NDArray[np.floating], bits: int, axis: int = 0) -> NDArray[np.float32]:
    """One step per channel of `axis`, shaped to broadcast against the weight.

    8 and 7 bits reach the largest weight. Fewer bits clip it where that lowers the squared error of the channel. The step of
    one bit is the mean magnitude of the weights that are not zero, which has the least squared error.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    if bits == 1:
        return mean_magnitude(weight, others)
    reach = np.abs(weight).max(others, keepdims=True) / largest_code(bits) + TINY
    if bits >= 7:
        return np.asarray(reach, np.float32)
    errors = [((quantize(weight, reach * clip, bits) * reach * clip - weight) ** 2).sum(others, keepdims=True) for clip in CLIPS]
    return np.asarray(reach * np.asarray(CLIPS)[np.argmin(errors, axis=0)], np.float32)


def mean_magnitude(weight: NDArray[np.floating], axes: tuple[int, ...]) -> NDArray[np.float32]:
    """Mean magnitude over some axes, which are kept, of the weights that are not zero."""
    count = np.maximum((weight != 0).sum(axes, keepdims=True), 1)
    return np.asarray(np.abs(weight).sum(axes, keepdims=True) / count + TINY, np.float32)


def largest_magnitudes(weight: NDArray[np.floating], sparsity: float) -> NDArray[np.bool_]:
    """A mask that keeps all but the `sparsity` fraction of smallest magnitudes; exactly round(sparsity · size) are False."""
    mask = np.ones(weight.size, dtype=bool)
    mask[np.argsort(np.abs(weight), axis=None, kind="stable")[: round(sparsity * weight.size)]] = False
    return mask.reshape(weight.shape)


def block_magnitudes(weight: NDArray[np.floating], keep: int, block: int, axis: int = 1) -> NDArray[np.bool_]:
    """A mask that keeps the `keep` largest magnitudes of every `block` consecutive weights along an axis (N:M sparsity).

    A shorter last block keeps as many, or all that it has. Of equal magnitudes the first are kept.
    """
    columns = np.moveaxis(np.abs(weight), axis, -1)
    length = columns.shape[-1]
    padded = np.pad(columns, [(0, 0)] * (weight.ndim - 1) + [(0, -length % block)], constant_values=-1)
    blocks = padded.reshape(*padded.shape[:-1], -1, block)
    mask = np.zeros(blocks.shape, dtype=bool)
    np.put_along_axis(mask, np.argsort(-blocks, axis=-1, kind="stable")[..., :keep], True, axis=-1)
    return np.moveaxis(mask.reshape(padded.shape)[..., :length], -1, axis)


def mask(weight: NDArray[np.floating], sparsity: float, block: tuple[int, int] | None = None, axis: int = 1) -> NDArray[np.bool_]:
    """A mask that keeps the largest magnitudes.

    Args:
        weight: what is masked.
        sparsity: fraction of zeros; with a block, below its own sparsity while the mask still grows.
        block: (N, M) keeps N of every M consecutive input channels; None chooses in the whole weight.
        axis: the input channels.
    """
    if block is None:
        return largest_magnitudes(weight, sparsity)
    return block_magnitudes(weight, max(block[0], round(block[1] * (1 - sparsity))), block[1], axis)


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Codes as the bytes of an OpenVINO tensor with elements of 4, 2 or 1 bits, padded to whole bytes.

    Elements of 4 and 2 bits fill a byte from its lowest bits, elements of 1 bit from its highest. For 2 bits and 1 bit the
    caller stores unsigned elements, so the codes given here are already shifted to 0 … 3 or 0 … 1.
    """
    if bits == 1:
        return np.packbits(codes.reshape(-1).astype(np.uint8))
    per_byte = 8 // bits
    flat = codes.reshape(-1).astype(np.uint8) & (2**bits - 1)
    flat = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    packed = np.zeros(len(flat), dtype=np.uint8)
    for i in range(per_byte):
        packed |= flat[:, i] << (i * bits)
    return packed
