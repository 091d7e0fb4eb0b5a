"""Runtimes that execute models. Importing any of them switches ONNX Runtime's telemetry off."""

import os

# ONNX Runtime 1.29 and later uploads events to its maker unless this is set before its library is loaded
# (docs/Privacy.md in its package). Assigned, not defaulted: nothing of a hospital's machine leaves it by accident.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
