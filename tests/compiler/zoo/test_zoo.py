"""Names, options, and the figures that papers and repositories give for these networks."""

import pytest
import torch
from torch import nn

import secateur
from secateur.compiler import zoo
from secateur.compiler.analysis import analyze
from secateur.compiler.capture import trace
from secateur.compiler.cost import measure
from secateur.compiler.errors import CompilerError
from secateur.compiler.proof import prove
from secateur.passes.prune.prune import Prune

PARAMETERS = {
    "cifar-vgg16-4096": 33_646_666,
    "cifar-vgg16-pfec": 14_990_922 + 1024,
    "cifar-vgg19": 20_035_018,
    "cifar-vgg19{classes=100}": 20_081_188,
    "cifar-resnet20": 269_722,
    "cifar-resnet32": 464_154,
    "cifar-resnet56": 853_018,
    "cifar-resnet110": 1_727_962,
    "cifar-preresnet164": 1_703_258,
    "cifar-preresnet164{classes=100}": 1_726_388,
    "cifar-densenet40": 1_019_722,
    "cifar-densenet40-24": 1_059_298,
    "mobilenetv1": 4_231_976,
}
MILLION_MACS = {
    "cifar-vgg19": 398.1,
    "cifar-resnet20": 40.55,
    "cifar-resnet32": 68.86,
    "cifar-resnet56": 125.49,
    "cifar-resnet110": 252.89,
    "cifar-preresnet164": 247.6,
    "cifar-densenet40": 264.8,
    "cifar-densenet40-24": 282.9,
    "mobilenetv1": 568.7,
}
SMALL = (
    "cifar-vgg11{cfg=8,M,8,M,16,M,16}",
    "cifar-vgg16-pfec{cfg=8,M,8,M,16,M,16,M,16}",
    "cifar-resnet20{depth=8}",
    "cifar-resnet20{depth=8 shortcut=behind}",
    "cifar-resnet20{depth=8 shortcut=projection inner=4,8,16}",
    "cifar-bottleneck29{depth=11}",
    "cifar-preresnet29{depth=11}",
    "cifar-densenet40{depth=10 growth=4}",
    "cifar-mobilenetv1{width=0.125}",
)


def built(text: str) -> nn.Module:
    torch.manual_seed(0)
    return zoo.network(text).build().eval()


@pytest.mark.parametrize("text", PARAMETERS)
def test_parameters(text: str) -> None:
    with torch.device("meta"):
        network = zoo.network(text).build()
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[text]


@pytest.mark.parametrize("text", MILLION_MACS)
def test_macs(text: str) -> None:
    network = zoo.network(text)
    macs = measure(trace(network.build().eval(), torch.zeros(network.input_shape))).macs
    assert macs / 1e6 == pytest.approx(MILLION_MACS[text], abs=0.05)


def test_macs_of_vgg16_are_those_of_its_convolutions() -> None:
    network = zoo.network("cifar-vgg16-4096")
    macs = measure(trace(network.build().eval(), torch.zeros(1, 3, 32, 32))).macs
    assert macs - 512 * 4096 - 4096 * 4096 - 4096 * 10 == pytest.approx(313.2e6, rel=1e-4)


@pytest.mark.parametrize("text", SMALL)
def test_half_of_the_macs_go_with_proof(text: str) -> None:
    network = zoo.network(text)
    program = trace(built(text), torch.zeros(network.input_shape))
    result = Prune(macs=0.5).run(program)
    assert measure(result.program).macs / measure(program).macs == pytest.approx(0.5, abs=0.05)
    assert result.plan is not None
    proof = prove(program, result.program.module, result.plan)
    assert proof.holds
    assert not proof.vacuous


@pytest.mark.parametrize("text", [SMALL[6], SMALL[7]])
def test_layers_select_what_they_read(text: str) -> None:
    """What the selection layers of network slimming are for: every norm of the trunk keeps channels of its own."""
    pipeline = "prune{criterion=bn-scale scope=global normalize=none select=all ratio=0.4}"
    compiled = secateur.compile(shaken(built(text)), torch.zeros(1, 3, 32, 32), pipeline=pipeline)
    assert compiled.report["verification"]["holds"]
    assert any(way in str(compiled.program.graph) for way in ("index_select", "narrow"))


def shaken(network: nn.Module) -> nn.Module:
    """Give batch norms scales that differ."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.1, 1.0, generator=generator)
    return network


def test_scales_begin_at_a_half_where_they_are_to_be_slimmed() -> None:
    for text, scale in ((SMALL[0], 0.5), (SMALL[6], 0.5), (SMALL[7], 0.5), (SMALL[2], 1.0), (SMALL[1], 1.0)):
        norms = [m for m in built(text).modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert norms
        assert all(bool((norm.weight == scale).all()) for norm in norms)


def test_the_trunk_is_followed_through_padded_shortcuts() -> None:
    deps = analyze(trace(built(SMALL[2]), torch.zeros(1, 3, 32, 32)))
    trunk = next(group for group in deps.groups if "conv1" in group.layers)
    assert {"layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"} <= set(trunk.layers)
    assert trunk.prunable == trunk.width


def test_options_reach_the_network() -> None:
    assert built("cifar-resnet20{inner=4,8,16}").get_parameter("layer3.2.conv1.weight").shape[0] == 16
    assert built("cifar-resnet20{inner=1,2,3,4,5,6,7,8,9}").get_parameter("layer3.2.conv1.weight").shape[0] == 9
    assert built("cifar-densenet40{depth=10 dropout=0.5}").get_submodule("dense1.0.dropout").p == 0.5
    assert built("cifar-vgg11{scale=1}").get_parameter("features.1.weight")[0] == 1
    assert built("cifar-mobilenetv1").get_submodule("conv1").stride == (1, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cifar-vgg16{depth=17}", "there is no VGG-17"),
        ("cifar-vgg16{cfg=64,X}", "cfg cannot be '64,X'"),
        ("cifar-vgg16{cfg=64,M}", "cannot end with a pool"),
        ("cifar-vgg16{classes=0}", "0 classes"),
        ("cifar-resnet20{depth=21}", "no such ResNet-21"),
        ("cifar-resnet20{inner=1,2}", "inner has 2 widths"),
        ("cifar-preresnet164{depth=21}", "no pre-activation ResNet-21"),
        ("cifar-densenet40{depth=41}", "no DenseNet-41"),
        ("cifar-densenet40{dropout=1}", "dropout cannot be 1"),
        ("mobilenetv1{width=0}", "the width cannot be 0"),
        ("cifar-vgg16{clases=2}", "'classes'"),
        ("cifar-vgg16{classes=2},cifar-vgg11", "more than one network"),
        ("cifar-vgg17", "cifar-vgg16"),
        ("cifar-vgg16{classes=2", "expected a space or '}', found the end"),
    ],
)
def test_a_bad_name_or_option_is_one_message(text: str, said: str) -> None:
    with pytest.raises(CompilerError) as caught:
        zoo.network(text)
    assert said in str(caught.value)
