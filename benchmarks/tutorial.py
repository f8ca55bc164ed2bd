"""MMoE on Census-Income as tutorials write it: the yardstick of this project's speed. Do not improve it.

One module per expert, gate, tower and embedding column, Python loops over them, a DataLoader over single rows,
plain Adam, encoders fitted on training and test rows together. Nothing of multigate is imported.

    MULTIGATE_DATA=... python benchmarks/tutorial.py --epochs 1 --threads 2
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import LabelEncoder, StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LABELS = ["income", "never_married"]
NOT_FEATURES = ["income_50k", "marital_stat", "education", "instance_weight"]
DENSE = ["age", "wage_per_hour", "capital_gains", "capital_losses", "stock_dividends", "num_emp", "weeks_worked"]


class MLP(nn.Module):
    """Linear layers, each followed by ReLU."""

    def __init__(self, input_dim, hidden_units):
        super().__init__()
        layers = []
        for units in hidden_units:
            layers += [nn.Linear(input_dim, units), nn.ReLU()]
            input_dim = units
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class MMoE(nn.Module):
    """Multi-gate mixture of experts (Ma et al. 2018) over embedded categories and dense numbers."""

    def __init__(self, cardinalities, num_dense, num_tasks=2, num_experts=8, embedding_dim=8):
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(n, embedding_dim) for n in cardinalities])
        input_dim = len(cardinalities) * embedding_dim + num_dense
        self.experts = nn.ModuleList([MLP(input_dim, [128, 64]) for _ in range(num_experts)])
        self.gates = nn.ModuleList([nn.Linear(input_dim, num_experts, bias=False) for _ in range(num_tasks)])
        self.towers = nn.ModuleList([nn.Sequential(MLP(64, [32]), nn.Linear(32, 1)) for _ in range(num_tasks)])

    def forward(self, sparse, dense):
        embedded = [embedding(sparse[:, i]) for i, embedding in enumerate(self.embeddings)]
        x = torch.cat([*embedded, dense], dim=1)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)  # (B, E, H)
        outputs = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = torch.softmax(gate(x), dim=1).unsqueeze(2)  # (B, E, 1)
            outputs.append(tower((weights * experts).sum(dim=1)).squeeze(1))
        return outputs


def load_data():
    folder = Path(os.environ["MULTIGATE_DATA"]) / "census-income"
    train, test = pd.read_parquet(folder / "train.parquet"), pd.read_parquet(folder / "test.parquet")
    data = pd.concat([train, test], ignore_index=True)
    labels = np.stack([data["income_50k"] == "50000+.", data["marital_stat"] == "Never married"], axis=1)
    sparse = [name for name in data.columns if name not in DENSE + NOT_FEATURES]
    for name in sparse:
        data[name] = LabelEncoder().fit_transform(data[name].astype(str))
    cardinalities = [int(data[name].max()) + 1 for name in sparse]
    dense = StandardScaler().fit_transform(data[DENSE])
    tensors = (
        torch.tensor(data[sparse].to_numpy(), dtype=torch.long),
        torch.tensor(dense, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.float32),
    )
    cut = len(train)
    return [t[:cut] for t in tensors], [t[cut:] for t in tensors], cardinalities


@torch.no_grad()
def predict(model, dataset, batch_size=1024):
    model.eval()
    batches = [torch.stack(model(sparse, dense), dim=1) for sparse, dense, _ in DataLoader(dataset, batch_size)]
    return torch.sigmoid(torch.cat(batches)).numpy()


def train(epochs=1, threads=2, seed=0):
    """Train, score and time; seconds and rows/s are of the training epochs alone, without reading and encoding."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    start = time.perf_counter()
    train_tensors, test_tensors, cardinalities = load_data()
    seconds_to_load = time.perf_counter() - start
    train_set, test_set = TensorDataset(*train_tensors), TensorDataset(*test_tensors)
    loader = DataLoader(train_set, shuffle=True, batch_size=1024)
    model = MMoE(cardinalities, num_dense=len(DENSE))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_function = nn.BCEWithLogitsLoss()

    start = time.perf_counter()
    for _ in range(epochs):
        model.train()
        for sparse, dense, labels in loader:
            outputs = model(sparse, dense)
            loss = sum(loss_function(output, labels[:, k]) for k, output in enumerate(outputs))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - start

    start = time.perf_counter()
    probabilities = predict(model, test_set)
    predict_seconds = time.perf_counter() - start
    times = []
    with torch.no_grad():
        for i in range(500):
            start = time.perf_counter()
            [torch.sigmoid(output).item() for output in model(test_tensors[0][i : i + 1], test_tensors[1][i : i + 1])]
            times.append(time.perf_counter() - start)
    auc = {name: roc_auc_score(test_tensors[2][:, k], probabilities[:, k]) for k, name in enumerate(LABELS)}
    return {
        "rows_per_s": epochs * len(train_set) / seconds,
        "seconds": seconds,
        "seconds_to_load": seconds_to_load,
        "predict_rows_per_s": len(test_set) / predict_seconds,
        "single_row_p50_ms": 1000 * float(np.median(times)),
        "parameters": sum(p.numel() for p in model.parameters()),
        **{f"auc_{name}": float(value) for name, value in auc.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(train(**vars(parser.parse_args())), indent=1))
