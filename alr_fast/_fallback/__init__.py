"""The operators in plain PyTorch, for where the native library is missing.

Schemas, checks and results are those of csrc/ops.cpp and csrc/ops.h; the numbers come from
`alr_fast.reference`. It is called with float64 numbers, the largest logit of each row subtracted,
so that a result has one rounding, to the type that the native operators calculate in. Devices
without float64 calculate in float32.

On the CPU a wrong index or label raises before anything is written. Elsewhere nothing waits for
the device: the row has NaN as loss and gradient, is stored nowhere and is counted in `status`. A
bank in pinned host memory is the exception; its rows are copied to the device and back.
"""
