"""The PyTorch twins compute what the networks here compute."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxhist import losses
from jaxhist.models.resnet import ResNet, SmallResNet

torch = pytest.importorskip("torch", reason="the twins need the extra [benchmark]")
twins = pytest.importorskip("benchmarks.resnet")


def to_flax(twin):
    """The weights of a twin as a tree of flax's names and layouts."""

    def conv(layer):
        return {"kernel": layer.weight.detach().numpy().transpose(2, 3, 1, 0)}

    def norm(layer):
        return {"scale": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}

    def numbered(convs, norms):
        return {f"Conv_{i}": conv(layer) for i, layer in enumerate(convs)} | {
            f"BatchNorm_{i}": norm(layer) for i, layer in enumerate(norms)
        }

    tree = numbered([twin.features[0]], [twin.features[1]])
    blocks = [part for part in twin.features if isinstance(part, twins.Residual)]
    for index, block in enumerate(blocks):
        kind = "Block" if len(block.convs) == 2 else "Bottleneck"
        projection = list(block.shortcut or [])
        tree[f"{kind}_{index}"] = numbered(
            [*block.convs, *projection[:1]], [*block.norms, *projection[1:]]
        )
    weight = twin.classify.weight.detach().numpy().T
    tree["Dense_0"] = {"kernel": weight, "bias": twin.classify.bias.detach().numpy()}
    return jax.tree.map(lambda array: jnp.asarray(array.copy()), tree)


@pytest.mark.parametrize("name", ["small", "large"])
def test_logits_and_one_step_agree(name):
    torch.manual_seed(0)
    with jax.enable_x64(True):
        if name == "small":
            twin, model, side = twins.small(8), SmallResNet(8, 10), 8
        else:
            twin, model, side = twins.large(classes=10), ResNet(50, 10), 64
        twin = twin.double().train()
        draw = np.random.default_rng(0)
        image, label = draw.normal(size=(4, side, side, 3)), draw.integers(0, 10, 4)
        params = to_flax(twin)
        shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
        assert jax.tree.structure(shapes["params"]) == jax.tree.structure(params)
        optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.01, momentum=0.9))

        def loss(params):
            # In training the averages over batches are not read.
            averages = jax.tree.map(jnp.zeros_like, shapes["batch_stats"])
            variables = {"params": params, "batch_stats": averages}
            logits, _ = model.apply(variables, image, train=True, mutable=["batch_stats"])
            return jnp.mean(losses.categorical_cross_entropy(logits, label)), logits

        @jax.jit
        def step(params):
            gradient, logits = jax.grad(loss, has_aux=True)(params)
            updates, _ = optimizer.update(gradient, optimizer.init(params), params)
            return optax.apply_updates(params, updates), logits

        params, logits = step(params)

        torch_optimizer = torch.optim.SGD(twin.parameters(), 0.01, 0.9, weight_decay=1e-4)
        torch_logits = twin(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
        torch.nn.functional.cross_entropy(torch_logits, torch.from_numpy(label)).backward()
        torch_optimizer.step()

        np.testing.assert_allclose(logits, torch_logits.detach().numpy(), atol=1e-8)
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, atol=1e-8),
            params,
            to_flax(twin),
        )
