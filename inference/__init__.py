"""The data plane."""

import os

# ONNX Runtime 1.31 writes a device id below the home and reports to a server of its maker unless told otherwise before
# it is imported; nothing of what runs here may leave the machine.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
