"""Trains the demo's two chest X-ray models (paediatric, 28×28) and fits the statistical model of their pictures.

    python -m venv torch && torch/bin/pip install torch==2.13.0 onnx numpy pillow
    torch/bin/python -m examples.chest_xray.train pneumoniamnist.npz

The file is PneumoniaMNIST of MedMNIST v2 (Yang et al. 2023, CC BY 4.0; pictures by Kermany et al. 2018). PyTorch is
needed here alone: the product and its tests read the ONNX files. Figures are measured afterwards, from those files and
through the product's own preprocessing, by `python -m examples.chest_xray.measure`.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from examples.chest_xray.generator import FOLDER, LABELS, fit, save

BATCH = 128
RANK = 60
OPSET = 17


class Network(nn.Module):
    """Blocks of convolution, batch norm, ReLU and pooling by 2, then the mean over the picture and one linear layer."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(zip((1, *widths), widths, strict=False))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(widths[-1], len(LABELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.max_pool2d(functional.relu(norm(convolution(x))), 2)
        return self.head(self.drop(x.mean(dim=(2, 3))))


def tensor_of(images: np.ndarray) -> torch.Tensor:
    """uint8 [n, 28, 28] as the preprocessor hands it to the model: float32 [n, 1, 28, 28] from -1 to 1."""
    return torch.from_numpy(images.astype(np.float32) / 255.0)[:, None] * 2 - 1


def varied(batch: torch.Tensor) -> torch.Tensor:
    """Small turns, shifts, zooms and changes of contrast, as between two exposures of one child."""
    n = len(batch)
    angle, zoom = (torch.rand(n) - 0.5) * 0.3, 1 + (torch.rand(n) - 0.5) * 0.2
    shift = (torch.rand(n, 2) - 0.5) * 0.2
    rows = torch.stack(
        [
            torch.stack([zoom * angle.cos(), -zoom * angle.sin(), shift[:, 0]], 1),
            torch.stack([zoom * angle.sin(), zoom * angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )
    grid = functional.affine_grid(rows, list(batch.shape), align_corners=False)
    moved = functional.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    contrast = 1 + (torch.rand(n, 1, 1, 1) - 0.5) * 0.3
    brightness = (torch.rand(n, 1, 1, 1) - 0.5) * 0.2
    return (moved * contrast + brightness).clamp(-1, 1)


def train(network: Network, images: np.ndarray, labels: np.ndarray, epochs: int, vary: bool) -> None:
    """Both classes weigh the same, however many pictures each has."""
    x, y = tensor_of(images), torch.from_numpy(labels.astype(np.int64))
    counts = torch.bincount(y).float()
    weights = counts.sum() / (len(counts) * counts)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * -(-len(x) // BATCH))
    network.train()
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(x)).split(BATCH):
            batch = varied(x[index]) if vary else x[index]
            loss = functional.cross_entropy(network(batch), y[index], weight=weights, label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(x):.4f}")
    network.eval()


def graph_of(network: Network) -> onnx.ModelProto:
    """The network as ONNX, `pictures` [n, 1, 28, 28] to `logits` [n, 2]; batch norms are folded into convolutions."""
    nodes, weights = [], []
    current = "pictures"
    for index, (convolution, norm) in enumerate(zip(network.convolutions, network.norms, strict=True)):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        kernel = convolution.weight * scale[:, None, None, None]
        bias = norm.bias - norm.running_mean * scale
        weights += [_weight(f"kernel_{index}", kernel), _weight(f"bias_{index}", bias)]
        nodes += [
            helper.make_node(
                "Conv", [current, f"kernel_{index}", f"bias_{index}"], [f"conv_{index}"], pads=[1, 1, 1, 1]
            ),
            helper.make_node("Relu", [f"conv_{index}"], [f"relu_{index}"]),
            helper.make_node("MaxPool", [f"relu_{index}"], [f"pool_{index}"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        current = f"pool_{index}"
    weights += [_weight("head", network.head.weight.T), _weight("head_bias", network.head.bias)]
    nodes += [
        helper.make_node("GlobalAveragePool", [current], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head", "head_bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "chest_xray_paediatric_28x28",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(LABELS)])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _weight(name: str, values: torch.Tensor) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values.detach().numpy()), name)


def main(source: Path) -> None:
    torch.manual_seed(2026)
    with np.load(source, allow_pickle=False) as kept:
        images, labels = kept["train_images"], kept["train_labels"].ravel()
    save(tuple(fit(images[labels == index], RANK) for index in range(len(LABELS))))
    for number, widths, epochs, vary in ((1, (4, 8), 3, False), (2, (16, 32, 64), 30, True)):
        network = Network(widths)
        train(network, images, labels, epochs, vary)
        (FOLDER / f"chest_xray_v{number}.onnx").write_bytes(graph_of(network).SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
