"""C++ kernels for CPUs, compiled on first use, with XLA as the fallback."""
