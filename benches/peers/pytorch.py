"""The workload in PyTorch.

    eager       as a user writes it: nn.Embedding, nn.LSTM, nn.Linear, torch.optim.Adam, loss.item() every step
    tuned       the fused Adam, no synchronisation within an epoch, evaluation in batches of 1024
    cuda-graph  (--device cuda) tuned, with each training step replayed as one captured graph
    cuda-graph-f32  the same without TF32

On a GPU, cuDNN multiplies in TF32 (10 bits of mantissa) unless it is told not to: PyTorch's default, so `eager`, `tuned` and
`cuda-graph` have it. Ours computes in f32: `cuda-graph-f32` is like for like.

PyTorch has two LSTM biases; one is kept at zero and untrained, or the bias would move at twice Keras' pace. Its Adam adds
eps after correcting v: Keras' eps is PyTorch's eps / sqrt(1 - beta2^t), set before every step (a captured graph keeps
its own: 1e-7, as a user would have).
"""

import common

o = common.options(__doc__, ["eager", "tuned", "cuda-graph", "cuda-graph-f32"])

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

if o.threads:
    torch.set_num_threads(o.threads)
o.threads = torch.get_num_threads()
DEVICE = torch.device(o.device)
if o.variant.endswith("-f32"):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


class Classifier(nn.Module):
    def __init__(self, vocab: int, embed: int, hidden: int, classes: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab, embed)
        self.lstm = nn.LSTM(embed, hidden, batch_first=True)
        self.dense = nn.Linear(hidden, classes)

    def forward(self, x):
        _, (h, _) = self.lstm(self.embedding(x))
        return self.dense(h[0])


def with_weights(weights: dict) -> Classifier:
    w = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()}
    vocab, embed = w["embedding/embeddings"].shape
    hidden, classes = w["dense/kernel"].shape
    model = Classifier(vocab, embed, hidden, classes)
    with torch.no_grad():
        model.embedding.weight.copy_(w["embedding/embeddings"])
        model.lstm.weight_ih_l0.copy_(w["lstm/kernel"].T)
        model.lstm.weight_hh_l0.copy_(w["lstm/recurrent_kernel"].T)
        model.lstm.bias_ih_l0.copy_(w["lstm/bias"])
        model.lstm.bias_hh_l0.zero_()
        model.dense.weight.copy_(w["dense/kernel"].T)
        model.dense.bias.copy_(w["dense/bias"])
    model.lstm.bias_hh_l0.requires_grad_(False)
    return model.to(DEVICE)


class Eager:
    evaluation_batch = 0  # --batch

    def __init__(self, data: common.Data):
        self.orders = data.orders
        tensor = lambda array: torch.from_numpy(np.asarray(array, np.int64)).to(DEVICE)  # noqa: E731
        self.x, self.y, self.x_test, self.y_test = map(tensor, (data.x_train, data.y_train, data.x_test, data.y_test))
        self.model = with_weights(common.initial_weights(o))
        self.optimizer = self.adam()
        self.t = self.epoch = 0

    def parameters(self):
        return [p for p in self.model.parameters() if p.requires_grad]

    def adam(self):
        return torch.optim.Adam(self.parameters(), lr=common.LR, eps=common.EPS)

    def step(self, x, y):
        self.t += 1
        self.optimizer.param_groups[0]["eps"] = common.EPS / (1 - common.BETA2**self.t) ** 0.5
        self.optimizer.zero_grad()
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), logits.detach()

    def order(self, rows: int):
        order = torch.from_numpy(np.asarray(self.orders[self.epoch % len(self.orders)][:rows], np.int64)).to(DEVICE)
        self.epoch += 1
        return order

    def train(self, rows: int):
        self.model.train()
        order = self.order(rows)
        loss_sum, correct, batches = 0.0, 0, 0
        for start in range(0, rows, o.batch):
            index = order[start:start + o.batch]
            x, y = self.x[index], self.y[index]
            loss, logits = self.step(x, y)
            loss_sum += loss.item()
            correct += (logits.argmax(1) == y).sum().item()
            batches += 1
        return loss_sum / batches, correct / rows

    def evaluate(self):
        self.model.eval()
        losses, hits = [], []
        size = self.evaluation_batch or o.batch
        with torch.no_grad():
            for start in range(0, len(self.x_test), size):
                x, y = self.x_test[start:start + size], self.y_test[start:start + size]
                logits = self.model(x)
                losses.append(F.cross_entropy(logits, y, reduction="none"))
                hits.append(logits.argmax(1) == y)
        return common.metrics(torch.cat(losses).cpu().numpy(), torch.cat(hits).cpu().numpy(), o.batch)

    def predict(self, x: np.ndarray):
        self.model.eval()
        with torch.inference_mode():
            ids = torch.from_numpy(x).to(DEVICE)
            return torch.softmax(self.model(ids), 1).cpu().numpy()


class Tuned(Eager):
    evaluation_batch = 1024

    def adam(self):
        return torch.optim.Adam(self.parameters(), lr=common.LR, eps=common.EPS, fused=True)

    def train(self, rows: int):
        self.model.train()
        order = self.order(rows)
        losses, hits = [], []
        for x, y in zip(self.x[order].split(o.batch), self.y[order].split(o.batch)):
            loss, logits = self.step(x, y)
            losses.append(loss)
            hits.append((logits.argmax(1) == y).sum())
        return torch.stack(losses).mean().item(), torch.stack(hits).sum().item() / rows


class CudaGraph(Tuned):
    def __init__(self, data: common.Data):
        if DEVICE.type != "cuda":
            raise SystemExit(f"pytorch.py: --variant {o.variant} needs --device cuda")
        super().__init__(data)
        self.graphs = {}

    def adam(self):
        return torch.optim.Adam(self.parameters(), lr=common.LR, eps=common.EPS, fused=True, capturable=True)

    def body(self, x, y, loss_sum, correct):
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        loss_sum += loss.detach()
        correct += (logits.detach().argmax(1) == y).sum()

    def graph(self, size: int):
        """The captured step of this batch size. What warming up changes is put back."""
        if size not in self.graphs:
            x, y = self.x[:size].clone(), self.y[:size].clone()
            loss_sum = torch.zeros((), device=DEVICE)
            correct = torch.zeros((), dtype=torch.int64, device=DEVICE)
            parameters = self.parameters()
            kept = [p.detach().clone() for p in parameters]
            state = {p: {k: v.clone() for k, v in self.optimizer.state[p].items()} for p in parameters if p in self.optimizer.state}
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.optimizer.zero_grad(set_to_none=False)
                for _ in range(3):
                    self.body(x, y, loss_sum, correct)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.body(x, y, loss_sum, correct)
            with torch.no_grad():
                for p, before in zip(parameters, kept):
                    p.copy_(before)
                    for name, value in self.optimizer.state[p].items():
                        value.copy_(state[p][name]) if p in state else value.zero_()
                    if p.grad is not None:
                        p.grad.zero_()
            self.graphs[size] = graph, x, y, loss_sum, correct
        return self.graphs[size]

    def train(self, rows: int):
        self.model.train()
        sizes = {min(o.batch, rows - start) for start in range(0, rows, o.batch)}
        for size in sizes:
            _, _, _, loss_sum, correct = self.graph(size)
            loss_sum.zero_()
            correct.zero_()
        order = self.order(rows)
        for xs, ys in zip(self.x[order].split(o.batch), self.y[order].split(o.batch)):
            graph, x, y, _, _ = self.graphs[len(xs)]
            x.copy_(xs)
            y.copy_(ys)
            graph.replay()
        batches = -(-rows // o.batch)
        loss = sum(self.graphs[size][3].item() for size in sizes) / batches
        return loss, sum(self.graphs[size][4].item() for size in sizes) / rows


common.main(o, "pytorch", torch.__version__, {"eager": Eager, "tuned": Tuned, "cuda-graph": CudaGraph, "cuda-graph-f32": CudaGraph}[o.variant])
