"""The peers' programs, each as its own documentation shows it for one process; run by the peer's own Python.

They import nothing of this repository but `onnx_model` and know MODEL (a file) and PORT from their environment.
"""
