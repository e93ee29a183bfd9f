"""Masks: pruned weights are exactly zero, whatever trains, copies, moves or loads the model."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pycompress import finalize_
from pycompress.masks import attach_, mask_of, masked


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))


def prune(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for layer in (model[0], model[2]):
        attach_(layer, "weight", torch.rand(layer.weight.shape, generator=generator) > 0.7)


def data(rows=64):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 12, generator=generator)
    return x, (x[:, :3].argmax(1))


def zero_and_alive(model):
    """All masked weights are exactly zero, and most kept weights are not."""
    for name, mask in masked(model).items():
        weight = model.get_parameter(name).detach()
        assert not mask.all()
        assert bool((weight[~mask] == 0).all())
        assert bool((weight[mask] != 0).float().mean() > 0.9)
    assert len(masked(model)) == 2
    return True


def step(model, optimizer):
    x, y = data()

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return optimizer.step(closure)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=5, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_leaves_exact_zeros_right_after_the_step(name):
    model = make()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):  # the optimizer has a history of the weights that are pruned next
        step(model, optimizer)
    prune(model)
    assert zero_and_alive(model)
    start = F.cross_entropy(model(data()[0]), data()[1]).item()
    for _ in range(20):
        step(model, optimizer)
        assert zero_and_alive(model)
    assert F.cross_entropy(model(data()[0]), data()[1]).item() < start


def test_lbfgs_minimizes_as_well_as_on_the_kept_weights_alone():
    """The line search must see the gradient of the pruned model, or it stalls."""
    x, y = data()
    model = make()
    prune(model)
    reference = copy.deepcopy(model)
    kept = masked(reference)
    finalize_(reference)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=30, line_search_fn="strong_wolfe")
    step(model, optimizer)

    class Masked(nn.Module):  # w * mask, differentiated
        def __init__(self):
            super().__init__()
            self.inner = reference

        def forward(self, x):
            weights = {name: p * kept[name] if name in kept else p for name, p in self.inner.named_parameters()}
            return torch.func.functional_call(self.inner, weights, x)

    twin = Masked()
    step(twin, torch.optim.LBFGS(twin.parameters(), max_iter=30, line_search_fn="strong_wolfe"))
    assert F.cross_entropy(model(x), y).item() == pytest.approx(F.cross_entropy(twin(x), y).item(), rel=0.05)


def test_hand_written_update():
    model = make()
    prune(model)
    x, y = data()
    for _ in range(3):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for p in model.parameters():
            p.data -= 0.1 * p.grad
        assert zero_and_alive(model)
    with torch.no_grad():
        model[0].weight += 1.0  # not a gradient: zeroed by the next forward
    model(x)
    assert zero_and_alive(model)


def test_gradient_clipping_sees_the_pruned_gradient():
    model = make()
    prune(model)
    x, y = data()
    F.cross_entropy(model(x), y).backward()
    for name, mask in masked(model).items():
        gradient = model.get_parameter(name).grad
        assert bool((gradient[~mask] == 0).all()) and bool((gradient[mask] != 0).any())


def test_a_module_called_twice_before_one_backward():
    layer = nn.Linear(4, 4)
    attach_(layer, "weight", torch.eye(4, dtype=torch.bool))
    x = torch.randn(2, 4, requires_grad=True)
    layer(torch.relu(layer(x))).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.load(_saved(m), weights_only=False),
        lambda m: copy.deepcopy(copy.deepcopy(m)),
    ],
    ids=["deepcopy", "pickle", "torch.save", "twice"],
)
def test_copies_keep_their_masks_and_are_independent(duplicate):
    model = make()
    prune(model)
    model(data()[0])
    twin = duplicate(model)
    assert twin[0].weight is not model[0].weight
    before = model[0].weight.detach().clone()
    optimizer = OPTIMIZERS["sgd"](twin.parameters())
    for _ in range(3):
        step(twin, optimizer)
        assert zero_and_alive(twin)
    assert torch.equal(model[0].weight, before)
    finalize_(twin)
    assert not masked(twin) and zero_and_alive(model)
    with torch.no_grad():
        model[0].weight.fill_(1)
    model(data()[0])
    assert bool((model[0].weight == 0).any())


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def test_dtype_and_device():
    model = make()
    prune(model)
    optimizer = OPTIMIZERS["sgd"](model.double().parameters())
    for _ in range(2):
        x, y = data()
        optimizer.zero_grad()
        F.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
        assert zero_and_alive(model)
    model.bfloat16()(data()[0].bfloat16())
    assert zero_and_alive(model)
    assert mask_of(copy.deepcopy(model).to("meta")[0]).device.type == "meta"


def test_state_dict_is_that_of_the_unpruned_model():
    model = make()
    keys = list(model.state_dict())
    prune(model)
    assert list(model.state_dict()) == keys
    other = make(seed=5)
    model.load_state_dict(other.state_dict(), strict=True)
    assert zero_and_alive(model)  # at once, before any forward
    kept = mask_of(model[0])
    assert torch.equal(model[0].weight[kept], other[0].weight[kept])
    model.load_state_dict(other.state_dict(), assign=True)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    step(model, optimizer)
    assert zero_and_alive(model)


def test_finalize_leaves_an_ordinary_model_with_exact_zeros():
    model = make()
    buffers = list(model.named_buffers())
    prune(model)
    pruned = {name: ~mask for name, mask in masked(model).items()}
    with torch.no_grad():
        model[0].weight.copy_(torch.where(model[0].weight == 0, torch.nan, 0.1))
        model[2].weight.neg_()  # -0.0
    assert finalize_(model) is model
    for name, where in pruned.items():
        zeros = model.get_parameter(name).detach()[where]
        assert bool((zeros == 0).all()) and not bool(zeros.signbit().any())
    assert not masked(model) and list(model.named_buffers()) == buffers
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._load_state_dict_post_hooks
    step(model, OPTIMIZERS["sgd"](model.parameters()))
    assert bool((model[2].weight != 0).all())
    assert finalize_(nn.Linear(2, 2)) is not None  # nothing to do


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 10, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids):
        return self.out(torch.tanh(self.hidden(self.embedding(ids))))


@pytest.mark.parametrize("twin", [lambda m: m, copy.deepcopy], ids=["itself", "copy"])
def test_tied_parameters_share_one_mask(twin):
    torch.manual_seed(0)
    model = Tied()
    mask = torch.rand(10, 6) > 0.5
    for module in (model.out, model.embedding):
        attach_(module, "weight", mask)
    model = twin(model)
    assert list(masked(model)) == ["embedding.weight"]
    assert model.out._buffers["_kept_weight"] is model.embedding._buffers["_kept_weight"]
    ids = torch.arange(10)
    model.out.weight.data.fill_(1)
    assert bool((model.embedding(ids)[~mask] == 0).all())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(ids), ids).backward()
        optimizer.step()
        assert bool((model.out.weight[~mask] == 0).all())
    tighter = mask & (torch.rand(10, 6) > 0.5)
    attach_(model.out, "weight", tighter)  # both have the new one
    assert torch.equal(mask_of(model.embedding), tighter)
    finalize_(model)
    assert not masked(model) and model.out.weight is model.embedding.weight


def test_functional_call_is_masked_too():
    model = make()
    prune(model)
    x, y = data()
    params = {name: p.detach() + 0.1 for name, p in model.named_parameters()}

    def loss(params):
        return F.cross_entropy(torch.func.functional_call(model, params, (x,)), y)

    gradients = torch.func.grad(loss)(params)
    for name, mask in masked(model).items():
        assert bool((gradients[name][~mask] == 0).all()) and bool((gradients[name][mask] != 0).any())
    expected = finalize_(copy.deepcopy(model))
    expected.load_state_dict({name: p * masked(model).get(name, 1) for name, p in params.items()})
    assert torch.equal(torch.func.functional_call(model, params, (x,)), expected(x))
    assert zero_and_alive(model)


def test_inference_mode_frozen_weights_traces_and_compiled_models():
    model = make()
    prune(model)
    with torch.inference_mode():
        model(data()[0])
    model.requires_grad_(False)
    twin = copy.deepcopy(model)
    expected = twin(data()[0])
    assert torch.equal(torch.fx.symbolic_trace(twin)(data()[0]), expected)
    assert torch.equal(torch.export.export(twin, (data()[0],)).module()(data()[0]), expected)
    assert torch.equal(torch.compile(twin, backend="eager", fullgraph=True)(data()[0]), expected)
    twin.requires_grad_(True)  # unfrozen later: guarded again
    step(twin, OPTIMIZERS["adamw"](twin.parameters()))
    assert zero_and_alive(twin)


def test_a_dead_model_is_forgotten():
    from pycompress import masks

    before = len(masks._watches)
    model = make()
    prune(model)
    model(data()[0]).sum().backward()
    assert len(masks._watches) == before + 2
    del model
    assert len(masks._watches) == before


def test_wrong_arguments():
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    good = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(TypeError, match="module must be"):
        attach_(None, "weight", good)
    with pytest.raises(ValueError, match=r"name must be one of the module's parameters \['weight', 'bias'\], got 'w'"):
        attach_(layer, "w", good)
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        attach_(layer, "weight", [[True]])
    for mask in (good.float(), good[:1], good.to("meta")):
        with pytest.raises(ValueError, match="mask must be bool, of shape"):
            attach_(layer, "weight", mask)
    with pytest.raises(TypeError, match="model must be"):
        finalize_("model")
    assert torch.equal(layer.weight, before) and not masked(layer) and mask_of(layer) is None
