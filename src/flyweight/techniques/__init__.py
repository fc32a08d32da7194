"""One room a technique, all of one shape (see docs/architecture.md); this table is all that names them."""

from __future__ import annotations

from flyweight.techniques.codebook import Codebook
from flyweight.techniques.distillation import Distillation
from flyweight.techniques.gptq import GPTQ
from flyweight.techniques.head_pruning import HeadPruning
from flyweight.techniques.hidden_pruning import HiddenPruning
from flyweight.techniques.int8 import Int8
from flyweight.techniques.layer_pruning import LayerPruning
from flyweight.techniques.magnitude import Magnitude
from flyweight.techniques.mask_search import MaskSearch
from flyweight.techniques.mixed_precision import MixedPrecision
from flyweight.techniques.movement import Movement
from flyweight.techniques.neuron_pruning import NeuronPruning
from flyweight.techniques.qat import QAT
from flyweight.techniques.room import Technique
from flyweight.techniques.static_int8 import StaticInt8
from flyweight.techniques.structured import StructuredPruning
from flyweight.techniques.student import Student
from flyweight.techniques.trained_codes import TrainedCodes
from flyweight.techniques.vocabulary import Vocabulary

TECHNIQUES: dict[str, type[Technique]] = {
    "int8": Int8,
    "static_int8": StaticInt8,
    "codebook": Codebook,
    "gptq": GPTQ,
    "mixed_precision": MixedPrecision,
    "trained_codes": TrainedCodes,
    "qat": QAT,
    "magnitude": Magnitude,
    "movement": Movement,
    "head_pruning": HeadPruning,
    "neuron_pruning": NeuronPruning,
    "layer_pruning": LayerPruning,
    "mask_search": MaskSearch,
    "vocabulary": Vocabulary,
    "hidden_pruning": HiddenPruning,
    "structured": StructuredPruning,
    "student": Student,
    "distillation": Distillation,
}
