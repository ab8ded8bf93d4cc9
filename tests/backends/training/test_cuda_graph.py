"""Training steps as CUDA graphs: refused elsewhere, and the same training as without."""

import pytest
import torch

from secateur.backends.training import cuda_graph
from secateur.backends.training.data import Data
from secateur.backends.training.loop import fit, make_fabric
from secateur.backends.training.methods.catalog import build
from secateur.backends.training.recipe import Recipe
from secateur.backends.training.splits import InMemory
from secateur.compiler import zoo
from secateur.compiler.capture import trace
from secateur.compiler.data.preprocess import Preprocess
from secateur.compiler.errors import OptionError


def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 3, 32, 32), generator=generator).to(torch.uint8)
    how = Preprocess(mean=(0.5,) * 3, std=(0.2,) * 3)
    split = InMemory("random", tuple("0123456789"), how, pixels, torch.arange(64) % 10)
    return Data(split, split, {})


def test_on_the_cpu_it_is_refused_before_training() -> None:
    recipe = Recipe(epochs=1, batch_size=16, cuda_graph=True)
    module = zoo.network("cifar-resnet20{depth=8}").build()
    with pytest.raises(OptionError, match=r"graphs on one CUDA device, and this run is on 'cpu'"):
        fit(module, data(), recipe, fabric=make_fabric(recipe, accelerator="cpu"))


def test_several_processes_are_refused() -> None:
    with pytest.raises(OptionError, match="2 processes"):
        cuda_graph.check(torch.device("cuda"), 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["", "soft{rate=0.3}", "slim{s=1e-2}"])
def test_training_is_the_same(method: str) -> None:
    losses: list[list[float]] = []
    for graph in (False, True):
        torch.manual_seed(0)
        module = zoo.network("cifar-resnet20{depth=8}").build()
        program = trace(module.eval(), torch.zeros(1, 3, 32, 32))
        recipe = Recipe(epochs=3, batch_size=16, lr=0.02, precision="bf16-mixed", channels_last=True, cuda_graph=graph)
        callbacks = [found.callback() for found in (build(method) if method else ())]
        history = fit(module, data(), recipe, callbacks=callbacks, program=program)
        assert "forward" not in vars(module)
        losses.append([epoch["loss"] for epoch in history.epochs])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
