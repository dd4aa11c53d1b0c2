"""Instruction sets pinned, so that a run gives the same bits on every x86-64 with AVX2.

A library that finds AVX-512 sums in another order, and training makes another accuracy of that. The
libraries read these variables when they are loaded: they belong to the environment that a kernel is
started with, before it imports NumPy or torch.
"""

#: For the environment of a process; the loops of :mod:`wexlib.ops` are compiled apart from it.
ENVIRONMENT = {
    # torch's own kernels: element by element, sums, batch norm
    "ATEN_CPU_CAPABILITY": "avx2",
    # oneDNN: convolutions, GELU
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",  # no bfloat16 inside of float32
    # MKL: products of matrices. AVX2 would be faster, but MKL takes it for AUTO on AMD's processors
    "MKL_CBWR": "COMPATIBLE",
    # NumPy's own kernels, and its and SciPy's products
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Haswell",
    # One thread: a sum that is shared out goes in another order
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
