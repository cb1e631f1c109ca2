"""Activations, as a part of other kernels."""

import triton
import triton.language as tl


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Return ACTIVATION of x, float32."""
    if ACTIVATION == "relu":
        # tl.maximum would turn NaN to 0, and hide it.
        out = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "gelu":
        # x Phi(x) = relu(x) - |x| Phi(-|x|), with Phi to 7.5e-8 by Abramowitz and Stegun, 26.2.17. With the library's
        # erf `bias_act` has 37 instructions a number, which take a large GPU longer than its bytes; so it has 21.
        u = tl.minimum(tl.abs(x), 30.0)
        t = tl.rsqrt(1.0 + 0.23164189 * u)
        t = t * t  # a quotient is not one instruction
        series = 0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)
        series = t * (0.127414796 + t * (-0.142248368 + t * series))
        out = tl.where(x < 0, 0.0, x) - u * series * tl.exp2(-0.7213475204444817 * u * u)
    else:
        # gelu_tanh: 0.5 (1 + tanh u) = sigmoid(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3).
        out = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return out
