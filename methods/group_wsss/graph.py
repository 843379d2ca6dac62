"""What the images of a group tell each other (Li et al., AAAI 2021, arXiv 2012.05007; code Lixy1997/Group-WSSS).

A node is an image, its state the activations (B, C, h, w) of the C object classes, of B groups at a time; nodes may
differ in size. `inside` (B, 1, h, w) bool says which cells show the image: padding tells nothing [ours].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Aggregate = Literal["concat", "mean"]
HIGH = 0.7  # of the largest channel mean, from which on graph dropout takes a position for common knowledge


def message(query: Tensor, key: Tensor, state: Tensor, inside: Tensor) -> Tensor:
    """`x_j softmax_{positions of j}((Pa x_i)' (Pb x_j))'`: each position of the receiver gathers a mix of the sender's.

    Args:
        query: (B, D, h, w), Pa x_i of the receiver.
        key: (B, D, h', w'), Pb x_j of the sender.
        state: (B, C, h', w'), x_j; `inside` is its own.

    Returns:
        (B, C, h, w).
    """
    some = inside | ~inside.flatten(1).any(1)[:, None, None, None]  # where nothing is inside, a mean instead of NaN
    q, k, v = (one.flatten(2).mT for one in (query, key, state))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=some.flatten(2), scale=1.0)
    return mixed.mT.unflatten(2, query.shape[2:])


def graph_dropout(x: Tensor, inside: Tensor, dropped: Tensor) -> Tensor:
    """`(x w + x) / 2`. Where a coin has fallen, w is 0 at positions whose channel mean is at least 0.7 of the largest,
    and 1 elsewhere (if all are negative, everywhere: the layer does nothing) [code]; else w is the sigmoid of the mean.

    Args:
        x: (B, C, h, w).
        inside: (B, 1, h, w) bool.
        dropped: (B,) bool.
    """
    a = x.mean(1, keepdim=True)
    high = a.detach().masked_fill(~inside, -torch.inf).amax((2, 3), keepdim=True)
    w = torch.where(dropped[:, None, None, None], (a.detach() < HIGH * high).to(x), a.sigmoid())
    return (x * w + x) / 2


class Graph(nn.Module):
    """Rounds of messages between all nodes of a group; all weights are shared by nodes and rounds.

    Args:
        classes: C.
        group: nodes, at least 2.
        rounds: T.
        aggregate: `concat`: the messages of the partners side by side, in their order [code]; `mean` of them [ours].
    """

    def __init__(self, classes: int, group: int, rounds: int, aggregate: Aggregate) -> None:
        super().__init__()
        self.rounds, self.aggregate = rounds, aggregate
        self.receive, self.send = (nn.Conv2d(classes, max(1, classes // 2), 1) for _ in range(2))
        self.gate = nn.Conv2d(classes, 1, 1, bias=False)
        self.merge = nn.Conv2d(classes * (group - 1 if aggregate == "concat" else 1), classes, 3, padding=1)
        self.update, self.reset, self.candidate = (nn.Conv2d(2 * classes, classes, 1) for _ in range(3))
        for layer in self.children():
            if isinstance(layer, nn.Conv2d):  # as the code has all of its layers
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(
        self, states: Sequence[Tensor], inside: Sequence[Tensor], member: Tensor, dropped: Tensor | None
    ) -> list[Tensor]:
        """The states after all rounds.

        Args:
            states: of each node, (B, C, h, w).
            inside: of each node, (B, 1, h, w) bool.
            member: (B, G) bool, nodes that take part; the others tell nothing.
            dropped: (B, G, T) bool, coins of graph dropout; None: there is none, as in evaluation [ours; the code's
                stays active].
        """
        nodes = list(states)
        with torch.autocast(nodes[0].device.type, enabled=False):
            for turn in range(self.rounds):
                told = [self.gathered(number, nodes, inside, member) for number in range(len(nodes))]
                nodes = [self.step(x, m) for x, m in zip(nodes, told, strict=True)]
                if dropped is not None:
                    coins = dropped[:, :, turn].unbind(1)
                    nodes = [graph_dropout(*one) for one in zip(nodes, inside, coins, strict=True)]
        return nodes

    def gathered(self, number: int, nodes: Sequence[Tensor], inside: Sequence[Tensor], member: Tensor) -> Tensor:
        """What a node is told, (B, C, h, w): the gated messages of the others, aggregated."""
        query, messages = self.receive(nodes[number]), []
        for sender, x in enumerate(nodes):
            if sender != number:
                m = message(query, self.send(x), x, inside[sender])
                m = m * self.gate(m).sigmoid()
                messages.append(m * (member[:, sender, None, None, None] & inside[number]))
        if self.aggregate == "concat":
            return self.merge(torch.cat(messages, 1))
        others = member.sum(1) - member[:, number].long()
        return self.merge(sum(messages, torch.zeros_like(messages[0])) / others.clamp(min=1)[:, None, None, None])

    def step(self, x: Tensor, told: Tensor) -> Tensor:
        """A convolutional gated recurrent unit with 1x1 gates: `(1 - u) x + u tanh(O[M, r x])`."""
        both = torch.cat([told, x], 1)
        u, r = self.update(both).sigmoid(), self.reset(both).sigmoid()
        return (1 - u) * x + u * self.candidate(torch.cat([told, r * x], 1)).tanh()
