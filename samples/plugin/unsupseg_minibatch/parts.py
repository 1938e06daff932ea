"""The two parts of the method: what they read is in `Inputs`, as declared."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import MiniBatchKMeans

from unsupseg_cli.methods.interface import Labeller, Masks, TrainedHead, Trainer
from unsupseg_cli.training.tokens import sample_tokens


class MiniBatchLabeller(Labeller):
    def fit(self):
        tokens = sample_tokens(self.inputs.features, self.options.sample, self.inputs.seed)
        seed = self.inputs.seed % 2**32
        self.kmeans = MiniBatchKMeans(self.inputs.classes, random_state=seed, n_init=3)
        self.kmeans.fit(F.normalize(tokens, dim=-1).cpu().numpy())
        return {"inertia": float(self.kmeans.inertia_)}

    def label(self, views):
        return [self._masks(self._unit(view)) for view in views]

    def _unit(self, view):
        return F.normalize(self.inputs.features.tokens([view])[0], dim=-1).cpu().numpy()

    def _masks(self, tokens):
        clusters = self.kmeans.predict(tokens.reshape(-1, tokens.shape[-1]))
        groups, labels, area = np.unique(clusters, return_inverse=True, return_counts=True)
        labels = labels.reshape(tokens.shape[:2]).astype(np.int16)
        return Masks(labels, area, np.ones(len(groups), np.float32), groups.astype(np.int64))


class LinearTrainer(Trainer):
    def __init__(self, options, inputs):
        super().__init__(options, inputs)
        self.steps, self.batch = options.steps, options.batch
        torch.manual_seed(inputs.seed)
        self.module = torch.nn.Linear(inputs.features.dim, inputs.classes).to(inputs.device)

    def optimizer(self):
        return torch.optim.Adam(self.module.parameters(), lr=self.options.lr)

    def weight(self, views):
        return self.inputs.features.grids[list(views)].prod(1).sum()  # every token counts alike

    def read(self, batch):
        return self.inputs.features.tokens(batch.views)

    def losses(self, batch, read):
        tokens = torch.cat([view.flatten(0, 1) for view in read])
        classes = np.concatenate([self.inputs.masks.classes(view).ravel() for view in batch.views])
        target = torch.from_numpy(classes).to(tokens.device)
        return {"loss": F.cross_entropy(self.module(tokens), target, ignore_index=-1)}

    def finish(self):
        weight, bias = (tensor.detach().cpu() for tensor in (self.module.weight, self.module.bias))
        head = {"type": "linear", "classes": len(weight), "dim": weight.shape[1]}
        return TrainedHead(head, {"class_head.weight": weight, "class_head.bias": bias})
