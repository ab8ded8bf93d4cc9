"""Tables of scans and comparisons, as text."""

from rich.console import Console, RenderableType

from secateur.backends.compare import Comparison
from secateur.backends.compare import Row as Pipeline
from secateur.backends.quality import Quality
from secateur.backends.study_tables import comparison, sensitivities
from secateur.passes.prune.sensitivity import Row, Scan


def text(renderable: RenderableType, width: int = 120) -> str:
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def settings(**more: object) -> dict[str, object]:
    return {"format": 1, "images": 1200, "loss": "cross-entropy", "dense": {"top1": 90.0, "loss": 0.5}, **more}


def test_groups_stand_in_the_order_of_their_harm() -> None:
    rows = (
        Row("mild", 0.25, 8, 6, 0.9, 0.9, 89.75, 0.5),
        Row("bad", 0.25, 8, 6, 0.9, 0.9, 80.0, 0.9),
        Row("bad", 0.75, 8, 2, 0.8, 0.7, 20.0, 2.5),
        Row("narrow", 0.25, 2, 2, 1.0, 1.0, 90.0, 0.5),
    )
    found = text(sensitivities(Scan(settings(), rows)))
    lines = [line.split() for line in found.splitlines()]
    assert lines[0] == ["channels", "of", "width", "-25%", "-75%", "loss", "MACs"]
    assert lines[1] == ["bad", "8", "-10.00", "-70.00", "+2.000", "-30.0%"]
    assert lines[2] == ["mild", "8", "-0.25", "+0.000", "-10.0%"]
    assert lines[3] == ["narrow", "2", "none", "go", "+0.000", "-0.0%"]
    assert "dense model: top-1 90.00%, cross-entropy 0.5000, on 1,200 images" in found
    assert "without labels" not in found


def test_long_scans_are_cut_and_missing_labels_are_said() -> None:
    rows = tuple(Row(f"layer{n}", 0.5, 8, 4, 0.9, 0.9, 80.0, 1.0) for n in range(30))
    found = text(sensitivities(Scan(settings(unlabelled="no classes"), rows)))
    assert "6 less sensitive groups are left out" in found
    assert "layer23" in found
    assert "layer24" not in found
    assert "without labels (no classes): compared with the dense model's own answers" in found


def test_pipelines_and_what_failed() -> None:
    rows = (
        Pipeline("prune", "prune{macs=0.5}", 0.5, 0.6, 88.0, 0.7, 1.25),
        Pipeline("prune", "prune{macs=0.01}", reason="macs=0.01 cannot be reached"),
    )
    found = text(comparison(Comparison(Quality(90.0, 0.5), 400, True, rows, ("a note",))))
    lines = [line.split() for line in found.splitlines()]
    assert lines[1] == ["dense", "100.0%", "100.0%", "90.00%", "0.5000"]
    assert lines[2] == ["prune{macs=0.5}", "50.0%", "60.0%", "88.00%", "-2.00", "0.7000", "1.2"]
    assert "400 images: one of them is 0.25 points of top-1" in found
    assert "a note" in found
    assert ["failed", "prune{macs=0.01}", "macs=0.01", "cannot", "be", "reached"] in lines
