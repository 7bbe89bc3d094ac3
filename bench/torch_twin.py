"""PyTorch's side of `medinet bench training`: the network of medinet-model's manifests, trained as our trainer does.

usage: torch_twin.py small|resnet18 SIDE BATCH STEPS --threads N [--channels-last]     (needs requirements-bench.txt)
       torch_twin.py small|resnet18 SIDE BATCH STEPS --threads N --private ghost|hooks
       torch_twin.py small|resnet18 SIDE BATCH STEPS --threads N --controlled

With --private it trains by Opacus' DP-SGD: ghost (fast gradient clipping) or hooks (gradients of each example). Opacus protects
examples and samples fixed batches here, so that each step has as many images as a plain one.

With --controlled it takes requests as lines of JSON from standard input, as cli/src/bench/child.rs describes: "run" with
a count of steps, at most STEPS in all. Without, it measures STEPS steps and prints a line.
"""

import argparse
import json
import sys
import time

import torch
from torch import nn

WARM_UP = 2
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
        y = Network.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return Network.relu(y + (x if self.downsample is None else self.downsample(x)))


class Network(nn.Module):
    # Opacus' hooks do not go with operations in place.
    relu = staticmethod(torch.relu_)

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
        x = self.pool(Network.relu(self.bn1(self.conv1(x))))
        return self.fc(self.layers(x).mean((2, 3)))


class Training:
    def __init__(self, options):
        torch.set_num_threads(options.threads)
        torch.manual_seed(1)
        self.network = Network(options.network, options.side)
        self.inputs = torch.rand((options.steps + WARM_UP) * options.batch, 1, options.side, options.side) * 2 - 1
        if options.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
            self.inputs = self.inputs.to(memory_format=torch.channels_last)
        self.targets = torch.arange(len(self.inputs)) % 2
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.loss = nn.CrossEntropyLoss()
        self.runtime = f"PyTorch {torch.__version__}"
        if options.private:
            self.make_private(options)
        self.batch, self.step = options.batch, 0
        self.run(WARM_UP)

    def make_private(self, options):
        import opacus

        Network.relu = staticmethod(torch.relu)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(self.inputs, self.targets), batch_size=options.batch
        )
        settings = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "poisson_sampling": False}
        private = opacus.PrivacyEngine(accountant="rdp").make_private(
            module=self.network,
            optimizer=self.optimizer,
            data_loader=loader,
            criterion=self.loss,
            grad_sample_mode=options.private,
            **settings,
        )
        self.network, self.optimizer = private[:2]
        if options.private == "ghost":
            self.loss = private[2]
        self.runtime = f"Opacus {opacus.__version__} ({options.private}), {self.runtime}"

    def run(self, count):
        """Wall seconds of each step, CPU seconds of all."""
        wall, cpu = [], time.process_time()
        for _ in range(count):
            start = time.perf_counter()
            batch = slice(self.step * self.batch, (self.step + 1) * self.batch)
            self.optimizer.zero_grad()
            self.loss(self.network(self.inputs[batch]), self.targets[batch]).backward()
            self.optimizer.step()
            self.step += 1
            wall.append(time.perf_counter() - start)
        return {"wall": wall, "cpu": [time.process_time() - cpu]}


def serve(training, steps):
    print(json.dumps({"runtime": training.runtime}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["task"] != "run":
            answer = {"error": f"no such task: {request['task']}"}
        elif training.step + request["count"] > steps + WARM_UP:
            answer = {"error": f"only {steps} steps were announced"}
        else:
            answer = {"figures": training.run(request["count"])}
        print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("side", type=int)
    parser.add_argument("batch", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--private", choices=["ghost", "hooks"])
    parser.add_argument("--controlled", action="store_true")
    options = parser.parse_args()
    training = Training(options)
    if options.controlled:
        serve(training, options.steps)
        return
    figures = training.run(options.steps)
    each = sorted(figures["wall"])
    print(
        f"{training.runtime} {options.network} {options.side} px batch {options.batch} threads {options.threads}"
        f"{' channels-last' if options.channels_last else ''}: {options.batch / each[len(each) // 2]:.1f} images/s (median"
        f" step), {options.batch / each[0]:.1f} (best step),"
        f" {options.batch * options.steps / figures['cpu'][0]:.1f} images per CPU second"
    )


if __name__ == "__main__":
    main()
