"""The matrices of a model in few bits, each made once: what sensitivity is measured with and mixed precision packs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from flyweight.forms import Form
from flyweight.forms.kmeans import kmeans_codes
from flyweight.model.linear import Embedding, Matrix, mask_of, set_form
from flyweight.model.nlu import NLUModel

BITS = (8, 4, 3, 2, 1)
Quantizer = Callable[[str, Matrix, int], Form]  # (name, float matrix, bits) -> what it becomes


def few_bits(name: str, module: Matrix, bits: int) -> Form:
    """8: int8 rows; 1 to 7: k-means codes, a table of int8 centres a row (7: of 16 rows, as codebook has it)."""
    w = module.weight.detach().float().cpu().numpy()
    return kmeans_codes(w, 2**bits, "row", integer=True, mask=mask_of(module))


def set_bits(module: Matrix, form: Form) -> None:
    """The matrix computes with that form: by int8 activations, unless it is looked up."""
    set_form(module, form, "float" if isinstance(module, Embedding) else "int8")


class Quantized:
    """Forms of a float model's matrices, kept: a byte a weight and width (0.5 GB for BERT-base at all five widths)."""

    def __init__(self, model: NLUModel, quantizer: Quantizer = few_bits):
        self.model, self.quantizer = model, quantizer
        self.modules: dict[str, Matrix] = {name: module for name, module, _ in model.matrices()}
        self._made: dict[tuple[str, int], Form] = {}

    def prepare(self, wanted: Iterable[tuple[str, int]]) -> None:
        """Make what is not there yet. NumPy releases the GIL in its large loops: two at a time use two cores."""
        todo = [key for key in wanted if key not in self._made]
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(lambda key: self.quantizer(key[0], self.modules[key[0]], key[1]), todo)
            self._made.update(zip(todo, found, strict=True))

    def of(self, table: Mapping[str, int]) -> dict[str, Form]:
        """matrix -> bits becomes matrix -> form."""
        self.prepare(table.items())
        return {name: self._made[name, bits] for name, bits in table.items()}
