"""`nn.MultiheadAttention` with parametrised weights: reading one would run the parametrisation again, so none is read."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from attnhook import AttentionCapture, TokenLayout
from attnhook.capture.multihead import refuse_parametrised
from attnhook.errors import UnsupportedModelError

LAYOUT = TokenLayout((2, 2))


class Net(nn.Module):
    def __init__(self, width: int | None = None):
        super().__init__()
        self.first = nn.MultiheadAttention(16, 2, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, kdim=width, vdim=width)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.first(x, x, x, need_weights=False)[0]
        other = x[..., : self.attention.kdim]
        return self.head(self.attention(x, other, other, need_weights=False)[0][:, 0])


class Noise(nn.Module):
    def forward(self, weight):
        return weight + 0.01 * torch.randn_like(weight)


def noise(module: nn.Module, name: str) -> None:
    parametrize.register_parametrization(module, name, Noise())


KINDS = {
    "spectral norm": parametrizations.spectral_norm,
    "noise": noise,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}


def built(kind, name: str) -> Net:
    torch.manual_seed(0)
    net = Net(width=8 if name[1:] == "_proj_weight" else None).train()
    owner, _, weight = name.rpartition(".")
    kind(net.attention.get_submodule(owner), weight)
    return net


def train(net: Net, options: dict | None) -> tuple[list[float], list[torch.Tensor], torch.Tensor, list]:
    """Losses, the state at the end, that of the random numbers, and what was captured."""
    torch.manual_seed(1)
    optimizer, losses, captures = torch.optim.SGD(net.parameters(), 0.1), [], []
    for _ in range(3):
        x = torch.rand(4, 5, 16)
        if options is None:
            loss = net(x).square().sum()
        else:
            capture = AttentionCapture(net, layout=LAYOUT, **options)
            with capture:
                loss = net(x).square().sum()
            captures.append(capture)
        optimizer.zero_grad()
        loss.backward()
        for capture in captures[-1:]:
            try:
                _ = capture.maps
            except UnsupportedModelError as error:
                captures[-1] = error
        optimizer.step()
        losses.append(loss.item())
    return losses, [t.clone() for t in net.state_dict().values()], torch.get_rng_state(), captures


def same(one, other) -> bool:
    return one[0] == other[0] and all(map(torch.equal, one[1], other[1])) and torch.equal(one[2], other[2])


WEIGHTS = [(kind, "in_proj_weight") for kind in KINDS]
WEIGHTS += [
    ("noise", name) for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "out_proj.weight")
]


@pytest.mark.parametrize("options", [{"rows": "cls"}, {"rows": "all"}, {"gradients": True}], ids=str)
@pytest.mark.parametrize("kind, name", WEIGHTS)
def test_training_goes_the_same_way_and_the_maps_are_refused(kind: str, name: str, options: dict) -> None:
    without, captured = (train(built(KINDS[kind], name), chosen) for chosen in (None, options))
    assert same(without, captured)
    assert same(without, train(built(KINDS[kind], name), None))
    for outcome in captured[3]:
        if name in ("v_proj_weight", "out_proj.weight") and "gradients" not in options:
            assert len(outcome.maps) == 2  # the rows need neither
        else:
            assert f"got a parametrised {name!r}" in str(outcome)
            assert "blocks=" in str(outcome)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_message_says_to_do_helps(kind: str) -> None:
    net, x = built(KINDS[kind], "in_proj_weight").eval(), torch.rand(4, 5, 16)
    with torch.no_grad(), AttentionCapture(net, layout=LAYOUT, blocks=["first"]) as left_out:
        net(x)
    assert left_out.maps.block_names == ("first",)
    plain = copy.deepcopy(net)
    parametrize.remove_parametrizations(plain.attention, "in_proj_weight")
    with torch.no_grad(), AttentionCapture(plain, layout=LAYOUT, rows="all") as capture:
        plain(x)
    tokens = plain.first(x, x, x)[0]
    weights = plain.attention(tokens, tokens, tokens, average_attn_weights=False)[1]
    torch.testing.assert_close(capture.maps[-1].rows, weights, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm")
@pytest.mark.parametrize("kind", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_a_hook_sets_are_read(kind) -> None:
    options = {"rows": "all"}
    without, captured = (train(built(kind, "in_proj_weight"), chosen) for chosen in (None, options))
    assert same(without, captured)
    net, x = built(kind, "in_proj_weight").eval(), torch.rand(4, 5, 16)
    with torch.no_grad(), AttentionCapture(net, layout=LAYOUT, rows="all") as capture:
        net(x)
    with torch.no_grad():
        tokens = net.first(x, x, x)[0]
        weights = net.attention(tokens, tokens, tokens, average_attn_weights=False)[1]
    torch.testing.assert_close(capture.maps[-1].rows, weights, atol=1e-6, rtol=0)


def test_the_check_reads_no_weight() -> None:
    net, state = built(noise, "in_proj_weight"), torch.get_rng_state()
    with pytest.raises(UnsupportedModelError, match=r"remove_parametrizations\(attention, 'in_proj_weight'\)"):
        refuse_parametrised(net.attention)
    assert torch.equal(torch.get_rng_state(), state)
    refuse_parametrised(net.first, values=True)
    out = built(noise, "out_proj.weight").attention
    refuse_parametrised(out)
    with pytest.raises(UnsupportedModelError, match=r"remove_parametrizations\(attention\.out_proj, 'weight'\)"):
        refuse_parametrised(out, values=True)
