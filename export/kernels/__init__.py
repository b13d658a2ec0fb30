"""Kernels of the decoder in Triton, and their compilation ahead of time for a bundle's sizes."""
