"""Images per second of PyTorch in training the network of medinet-model's manifests, for examples/throughput.rs.

usage: torch_twin.py small|resnet18 SIDE BATCH STEPS --threads N     (needs requirements-bench.txt)
"""

import argparse
import time

import torch
from torch import nn

NETWORKS = {"small": ([16, 32, 64], [1, 1, 1], 8), "resnet18": ([64, 128, 256, 512], [2, 2, 2, 2], 32)}


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, groups):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.GroupNorm(groups, outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(groups, outputs)
            )

    def forward(self, x):
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu_(y + (x if self.downsample is None else self.downsample(x)))


class Network(nn.Module):
    def __init__(self, name, side, classes=2):
        super().__init__()
        channels, blocks, groups = NETWORKS[name]
        kernel, stride, pool = (3, 1, False) if side < 48 else (5, 2, False) if side < 112 else (7, 2, True)
        self.conv1 = nn.Conv2d(1, channels[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.GroupNorm(groups, channels[0])
        self.pool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()
        layers, inputs = [], channels[0]
        for stage, (outputs, count) in enumerate(zip(channels, blocks)):
            for block in range(count):
                layers.append(Block(inputs, outputs, 2 if stage and not block else 1, groups))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.pool(torch.relu_(self.bn1(self.conv1(x))))
        return self.fc(self.layers(x).mean((2, 3)))


parser = argparse.ArgumentParser()
parser.add_argument("network", choices=NETWORKS)
parser.add_argument("side", type=int)
parser.add_argument("batch", type=int)
parser.add_argument("steps", type=int)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--channels-last", action="store_true")
options = parser.parse_args()

torch.set_num_threads(options.threads)
torch.manual_seed(1)
network = Network(options.network, options.side)
inputs = torch.rand((options.steps + 2) * options.batch, 1, options.side, options.side) * 2 - 1
if options.channels_last:
    network = network.to(memory_format=torch.channels_last)
    inputs = inputs.to(memory_format=torch.channels_last)
targets = torch.arange(len(inputs)) % 2
optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
times, cpu = [], []
for step in range(options.steps + 2):
    batch = slice(step * options.batch, (step + 1) * options.batch)
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
    optimizer.step()
    times.append(time.perf_counter())
    cpu.append(time.process_time())
each = sorted(b - a for a, b in zip(times[1:], times[2:]))
print(
    f"torch {torch.__version__} {options.network} {options.side} px batch {options.batch} threads {options.threads}"
    f"{' channels-last' if options.channels_last else ''}: {options.batch / each[len(each) // 2]:.1f} images/s (median step),"
    f" {options.batch / each[0]:.1f} (best step), {options.batch * options.steps / (cpu[-1] - cpu[1]):.1f} images per CPU second"
)
