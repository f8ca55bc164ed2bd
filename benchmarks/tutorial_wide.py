"""MMoE on rows of a large vocabulary as tutorials write it: the yardstick of wide.py. Do not improve it.

The model, the DataLoader over single rows and the plain Adam of tutorial.py, with embeddings of 16, batches of 4096 and
encoders fitted on training and test rows together. Nothing of multigate is imported.
"""

import time

import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import LabelEncoder, StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tutorial import MMoE, predict


def load_data(folder):
    train, test = pd.read_parquet(folder / "train.parquet"), pd.read_parquet(folder / "test.parquet")
    data = pd.concat([train, test], ignore_index=True)
    sparse = [name for name in data.columns if name.startswith("id_")]
    dense = [name for name in data.columns if name.startswith("number_")]
    labels = [name for name in data.columns if name.startswith("task_")]
    for name in sparse:
        data[name] = LabelEncoder().fit_transform(data[name])
    cardinalities = [int(data[name].max()) + 1 for name in sparse]
    numbers = StandardScaler().fit_transform(data[dense])
    tensors = (
        torch.tensor(data[sparse].to_numpy(), dtype=torch.long),
        torch.tensor(numbers, dtype=torch.float32),
        torch.tensor(data[labels].to_numpy(), dtype=torch.float32),
    )
    cut = len(train)
    return [t[:cut] for t in tensors], [t[cut:] for t in tensors], cardinalities


def train(folder, epochs=1, threads=2, seed=0):
    """Train, score and time; seconds and rows/s are of the training epochs alone, without reading and encoding."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    start = time.perf_counter()
    train_tensors, test_tensors, cardinalities = load_data(folder)
    seconds_to_load = time.perf_counter() - start
    train_set, test_set = TensorDataset(*train_tensors), TensorDataset(*test_tensors)
    loader = DataLoader(train_set, shuffle=True, batch_size=4096)
    model = MMoE(cardinalities, num_dense=train_tensors[1].shape[1], embedding_dim=16)
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

    probabilities = predict(model, test_set)
    truth = test_tensors[2]
    return {
        "rows_per_s": epochs * len(train_set) / seconds,
        "seconds": seconds,
        "seconds_to_load": seconds_to_load,
        "parameters": sum(p.numel() for p in model.parameters()),
        "auc": [float(roc_auc_score(truth[:, k], probabilities[:, k])) for k in range(truth.shape[1])],
    }
