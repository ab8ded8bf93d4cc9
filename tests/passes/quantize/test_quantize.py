"""The quantize pass: what runs in integers, what the graph says, how far it is off, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import secateur
from secateur.compiler import examples
from secateur.compiler.capture import trace
from secateur.compiler.errors import OptionError, SourceError
from secateur.compiler.functional import dequantize, quantize
from secateur.compiler.program import Program
from secateur.compiler.quantized import QuantizedConv2d, QuantizedLinear
from secateur.passes.base import PassResult
from secateur.passes.edit import Edit
from secateur.passes.quantize.canonical import canonicalise
from secateur.passes.quantize.quantize import NOISE, Quantize
from support.exact import lively, missed

PIPELINE = "eliminate-identity,fold-constants,fold-bn,quantize{weight-bits=8}"
IMAGE = (2, 3, 8, 8)


class Net(nn.Module):
    """A stem whose output goes through ``middle``, a pool and a classifier."""

    def __init__(self, middle: nn.Module | None = None, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = middle or nn.Identity()
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.conv(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Apply(nn.Module):
    """One function as a module."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.other = nn.Conv2d(8, 8, 1)
        self.act = nn.Hardswish()
        self.gain = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = eval(self.text, {"torch": torch, "F": F, "x": x, "self": self})
        return y


def quantized(module: nn.Module, shape: tuple[int, ...] = IMAGE, **options: object) -> PassResult:
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(shape, generator=generator) for _ in range(4)]
    settings: dict[str, object] = {"data": data, "weight_bits": "8", **options}
    return Quantize(**settings).run(trace(lively(module), torch.zeros(shape)))  # pyright: ignore[reportArgumentType]


def calls(program: Program, function: object) -> list[fx.Node]:
    return [n for n in program.graph.nodes if n.target is function]


def scales_at(program: Program, function: object) -> set[tuple[float, int]]:
    return {(float(n.args[1]), int(n.args[2])) for n in calls(program, function)}  # pyright: ignore[reportArgumentType]


INTEGER = {
    "relu": "F.relu(x)",
    "relu6": "F.relu6(x)",
    "residual": "F.relu(self.other(x) + x)",
    "gate": "x * torch.sigmoid(self.other(x).mean((2, 3), keepdim=True))",
    "hard gate": "x * F.hardsigmoid(self.other(x))",
    "hardswish": "self.act(x)",
    "silu": "F.silu(x)",
    "cat": "torch.cat([x, self.other(x)], 1)[:, 4:12]",
    "max pool": "F.max_pool2d(x, 2)",
    "avg pool": "F.avg_pool2d(x, 2)",
    "shuffle": "x.view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8)",
    "split": "torch.cat(x.chunk(2, 1)[::-1], 1)",
    "pad": "F.pad(x, (0, 0, 0, 0, 2, 2))[:, 2:10]",
}


@pytest.mark.parametrize("name", INTEGER)
def test_runs_in_integers_throughout_and_is_close(name: str) -> None:
    module = Net(Apply(INTEGER[name]))
    result = quantized(module)
    assert missed(result) == {}
    assert result.stats["float"] == 0
    assert result.stats["int8_macs"] == 1.0
    assert result.stats["sqnr_db"] > 25
    assert all(type(m) in (QuantizedConv2d, QuantizedLinear) for m in result.program.root.modules() if m is not None
               and isinstance(m, (nn.Conv2d, nn.Linear)))  # fmt: skip


FLOAT = {
    "gelu": ("F.gelu(x)", "gelu", "there is no integer form of gelu"),
    "a constant": ("x * self.gain", "mul", "one operand is a constant"),
    "norm": ("F.layer_norm(x, (8, 8))", "layer_norm", "there is no integer form of layer_norm"),
}


@pytest.mark.parametrize("name", FLOAT)
def test_what_stays_in_float_says_why(name: str) -> None:
    text, node, reason = FLOAT[name]
    result = quantized(Net(Apply(text)))
    assert missed(result)[node] == f"in float: {reason}"
    assert result.stats["sqnr_db"] > 20


def test_moved_tensors_keep_the_scale_of_what_they_were_moved_from() -> None:
    program = quantized(Net(Apply("F.max_pool2d(F.relu(x), 2).flip(3)"))).program
    pool, flip = (next(n for n in program.graph.nodes if name in n.name) for name in ("max_pool", "flip"))
    around = [next(iter(n.users)).args[1:] for n in (pool, flip)]
    assert around[0] == around[1]


def test_clipping_is_taken_over_by_the_saturation_of_the_integers() -> None:
    program = quantized(Net(Apply("F.relu(x)"))).program
    assert not calls(program, F.relu)
    assert (quantized(Net(Apply("F.relu(x)"))).program.module.eval()(torch.randn(IMAGE))).isfinite().all()
    # Behind something that others read too, it is one of several ways to write the same tensor in integers.
    program = quantized(Net(Apply("F.relu(x) + x"))).program
    assert not calls(program, F.relu)
    assert len(scales_at(program, quantize)) == 5


def test_a_hard_sigmoid_is_an_addition_that_saturates() -> None:
    module = Net(Apply("F.hardsigmoid(x * 4)"))
    result = quantized(Net(Apply("F.hardsigmoid(self.other(x))")))
    assert not calls(result.program, F.hardsigmoid)
    assert (float(torch.tensor(1 / 255)), 0) in scales_at(result.program, quantize)
    assert quantized(module).changed


def test_readers_of_integers_read_what_was_written() -> None:
    program = quantized(Net(Apply("F.relu(self.other(x) + x)"))).program
    for node in calls(program, quantize):
        for user in node.users:
            assert user.target is dequantize
            assert user.args[1:] == node.args[1:3]


def test_the_last_linear_layer_gives_real_numbers() -> None:
    program = quantized(Net()).program
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    assert output.all_input_nodes[0].target == "fc"


def test_canonical_forms_are_equal() -> None:
    class Forms(Net):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8), nn.Hardswish(), nn.SiLU()))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.middle(self.conv(x)).mean([2, 3]))

    module = lively(Forms()).double()
    edit = Edit(trace(module, torch.zeros(IMAGE, dtype=torch.float64)))
    canonicalise(edit)
    x = torch.randn(IMAGE, dtype=torch.float64)
    rewritten = edit.finish().module.eval()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in rewritten.modules())
    torch.testing.assert_close(rewritten(x), module(x), rtol=1e-12, atol=1e-12)


def test_single_layers_may_have_settings_of_their_own() -> None:
    module = Net(Apply("F.relu(self.other(x))"))
    result = quantized(module, layers={"middle.*": "float", "conv": "7"})
    assert type(result.program.owner("middle.other")) is nn.Conv2d
    assert missed(result)["middle.other"] == "in float: layers= says so"
    layer = result.program.owner("conv")
    assert isinstance(layer, QuantizedConv2d)
    assert int(layer.weight.abs().max()) == 63
    wide, narrow = (quantized(module, layers={"conv": o}, observer="minmax") for o in ("minmax", "average"))
    assert scales_at(wide.program, quantize) - scales_at(narrow.program, quantize)
    with pytest.raises(OptionError, match="layers names no layer: 'nope'"):
        quantized(Net(), layers={"nope": "float"})


def test_learned_rounding_moves_weights_by_at_most_one_and_serves_the_output() -> None:
    torch.manual_seed(5)
    module = Net(Apply("F.relu(self.other(F.relu(x)))"))
    nearest, learned = (quantized(module, rounding=how, weight_bits="7") for how in ("nearest", "adaround"))
    layers = [result.program.owner("middle.other") for result in (nearest, learned)]
    assert all(isinstance(layer, QuantizedConv2d) for layer in layers)
    moved = (layers[0].get_parameter("weight").int() - layers[1].get_parameter("weight").int()).abs()
    assert 0 < int(moved.max()) <= 1
    assert learned.stats["sqnr_db"] > nearest.stats["sqnr_db"] - 1


def test_seven_bits_stay_within_63() -> None:
    layer = quantized(Net(), weight_bits="7").program.owner("conv")
    assert isinstance(layer, QuantizedConv2d)
    assert int(layer.weight.abs().max()) == 63


def test_bias_correction_takes_out_the_mean_shift() -> None:
    torch.manual_seed(3)
    module = Net()
    plain, corrected = (quantized(module, bias_correction=how, weight_bits="7") for how in ("none", "analytic"))
    x = torch.cat([torch.randn(IMAGE, generator=torch.Generator().manual_seed(1)) for _ in range(4)])
    shifts: list[float] = []
    for result in (plain, corrected):
        layer = result.program.owner("conv")
        shifts.append((layer(x) - module.conv(x)).mean((0, 2, 3)).abs().max().item())
    assert shifts[1] < 0.5 * shifts[0]


def test_calibrated_bias_correction_evens_out_the_means_of_every_layer() -> None:
    module = lively(Net(Apply("F.relu(self.other(F.relu(x)))")))
    images = torch.cat([torch.randn(IMAGE, generator=torch.Generator().manual_seed(1)) for _ in range(4)])
    shifts: dict[str, float] = {}
    for how in ("none", "calibrated"):
        result = Quantize(data=[images], weight_bits="7", bias_correction=how).run(trace(module, images[:2]))
        means = [_mean_of_last_layer(m.eval(), images) for m in (module, result.program.module)]
        shifts[how] = (means[0] - means[1]).abs().max().item()
    assert shifts["calibrated"] < 1e-5
    assert shifts["none"] > 10 * shifts["calibrated"]


def _mean_of_last_layer(module: nn.Module, images: Tensor) -> Tensor:
    found: list[Tensor] = []
    handle = module.get_submodule("fc").register_forward_hook(lambda m, i, o: found.append(o.mean(0)))
    with torch.no_grad():
        module(images)
    handle.remove()
    return found[0]


def test_max_drop_gives_the_most_sensitive_layers_back_to_float() -> None:
    class Touchy(Net):
        """One layer has a channel a thousand times the others: int8 loses all of the others."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    module = Touchy(Apply("F.relu(self.other(F.relu(x)))"))
    other = module.get_submodule("middle.other")
    assert isinstance(other, nn.Conv2d)
    with torch.no_grad():
        other.weight[:, 0] *= 1000
        module.conv.weight[0] /= 1000
        assert module.conv.bias is not None
        module.conv.bias[0] /= 1000
        module.fc.bias.zero_()
    strict, loose = (quantized(module, max_drop=drop) for drop in (0.0, 0.9))
    assert strict.stats["same_top1"] == 1.0
    assert "among the most sensitive" in missed(strict)["middle.other"]
    assert missed(loose) == {}


def test_an_impossible_max_drop_is_refused() -> None:
    with pytest.raises(OptionError, match="max-drop=2 is out of range"):
        Quantize(max_drop=2.0)


def test_without_data_it_says_so() -> None:
    result = Quantize(weight_bits="8").run(trace(Net().eval(), torch.zeros(IMAGE)))
    assert NOISE in [remark.reason for remark in result.remarks]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "there are no calibration data"),
        ([torch.zeros(3)], "not batches of shape"),
        ([("text", 1)], "are str, not batches"),
        ([()], "give 0 inputs, the model takes 1"),
    ],
)
def test_wrong_data_are_refused(data: list[object], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Quantize(data=data).run(trace(Net().eval(), torch.zeros(IMAGE)))


def test_nothing_to_quantize() -> None:
    result = Quantize().run(trace(nn.ReLU(), torch.zeros(IMAGE)))
    assert not result.changed
    assert "nothing was quantized" in result.remarks[-1].reason


def test_digits_keep_their_accuracy_and_shrink(tmp_path_factory: pytest.TempPathFactory) -> None:
    digits = examples.load("digits")
    data = list(digits.train_images[:256].split(64))
    compiled = secateur.compile(digits.module, torch.zeros(1, 1, 8, 8), pipeline=PIPELINE, data=data)
    before = examples.accuracy(digits.module, digits.test_images, digits.test_labels)
    after = examples.accuracy(compiled.module, digits.test_images, digits.test_labels)
    assert after >= before - 0.5
    assert compiled.report["after"]["bytes"] < 0.30 * compiled.report["before"]["bytes"]
    assert compiled.report["after"]["macs"] == compiled.report["before"]["macs"]
    folder = tmp_path_factory.mktemp("artefact") / "digits"
    compiled.save(folder)
    loaded = secateur.load(folder)
    assert loaded.state_dict()["conv1.weight"].dtype == torch.int8
    assert torch.equal(loaded(digits.test_images[:9]), compiled.module.eval()(digits.test_images[:9]))
    # captured again, it is the program that it was
    again = secateur.trace(loaded, torch.zeros(1, 1, 8, 8))
    assert scales_at(again, quantize) == scales_at(compiled.program, quantize)
