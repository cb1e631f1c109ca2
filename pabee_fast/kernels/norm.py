"""Layer norm, as a part of other kernels."""

import triton
import triton.language as tl


@triton.jit
def normalise(x, gain_ptr, shift_ptr, hidden_offs, eps, HIDDEN_SIZE: tl.constexpr):
    """Return the layer norm of x, [tokens, hidden] float32 with zeros past HIDDEN_SIZE.

    gain_ptr, shift_ptr: [HIDDEN_SIZE]
    """
    hidden_mask = hidden_offs < HIDDEN_SIZE
    # [tokens]; the squares are of the differences: a mean of squares would cancel where the mean is large.
    mean = tl.sum(x, axis=1) / HIDDEN_SIZE
    centred = tl.where(hidden_mask[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / HIDDEN_SIZE
    # [hidden]
    gain = tl.load(gain_ptr + hidden_offs, mask=hidden_mask, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + hidden_offs, mask=hidden_mask, other=0.0).to(tl.float32)
    return centred * tl.rsqrt(variance + eps)[:, None] * gain[None, :] + shift[None, :]
