"""The parts of an emitted ``model.py`` that are the same for every model."""

from __future__ import annotations

HEADER = '''"""{title}

Emitted by secateur {version}. This file needs only torch; its weights are in model.safetensors beside it.

    from model import load
    model = load()      # a {root}, in eval mode; model.train() makes it trainable

    python model.py     # self-check: runs the model on a random input
"""
'''

LOAD = '''
_DTYPES = {{
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file: the header's length, the header as JSON, then the tensors' bytes."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    start = 8 + length
    tensors = {{}}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        raw = data[start + begin : start + end]  # a copy of its own, so that the tensor's memory is aligned
        values = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def load(directory: str | Path | None = None) -> {root}:
    """Build the model with the weights in a directory (by default the one of this file), in eval mode."""
    model = {make}()
    folder = Path(__file__).parent if directory is None else Path(directory)
    model.load_state_dict(read_safetensors(folder / "model.safetensors"))
    return model.eval()
'''

MAIN = """
def _shapes(value):
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {{key: _shapes(item) for key, item in value.items()}}
    return [_shapes(item) for item in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    inputs = {inputs}
    with torch.no_grad():
        print(_shapes(load()(*inputs)))
"""
