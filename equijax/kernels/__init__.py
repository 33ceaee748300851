"""C++ kernels for CPUs, compiled on first use, and Pallas kernels for NVIDIA GPUs, with XLA as the fallback."""
