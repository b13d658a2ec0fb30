"""A decoder of our own for NVIDIA GPUs: kernels that the bundle holds, launched by cuda-python alone."""
