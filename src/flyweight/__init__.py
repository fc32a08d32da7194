"""Flyweight: small, fast BERT-class NLU models on an ordinary CPU, with proof that the answers did not change.

    import flyweight as fw
    data    = fw.load_data("nlu.yml")
    teacher = fw.train(data, base="minilm")
    small   = fw.compress(teacher, data, [fw.Int8()])
    fw.save(small, "bot.fly")
    nlu     = fw.load("bot.fly")                     # needs no torch
    nlu.parse("book a table for two")

Names are loaded when first used: `import flyweight` is quick, and the service half never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flyweight.data.load import load_data as load_data
    from flyweight.data.load import read_messages as read_messages
    from flyweight.data.messages import NLUData as NLUData
    from flyweight.errors import FlyweightError as FlyweightError
    from flyweight.export.fly import save as save
    from flyweight.measure.quality import evaluate as evaluate
    from flyweight.model.nlu import NLUModel as NLUModel
    from flyweight.receipt import Receipt as Receipt
    from flyweight.recipe import Recipe as Recipe
    from flyweight.recipe import compress as compress
    from flyweight.runtime.parser import Parser as Parser
    from flyweight.runtime.parser import load as load
    from flyweight.techniques.codebook import Codebook as Codebook
    from flyweight.techniques.distillation import Distillation as Distillation
    from flyweight.techniques.gptq import GPTQ as GPTQ
    from flyweight.techniques.head_pruning import HeadPruning as HeadPruning
    from flyweight.techniques.hidden_pruning import HiddenPruning as HiddenPruning
    from flyweight.techniques.int8 import Int8 as Int8
    from flyweight.techniques.layer_pruning import LayerPruning as LayerPruning
    from flyweight.techniques.magnitude import Magnitude as Magnitude
    from flyweight.techniques.mask_search import MaskSearch as MaskSearch
    from flyweight.techniques.mixed_precision import MixedPrecision as MixedPrecision
    from flyweight.techniques.movement import Movement as Movement
    from flyweight.techniques.neuron_pruning import NeuronPruning as NeuronPruning
    from flyweight.techniques.qat import QAT as QAT
    from flyweight.techniques.static_int8 import StaticInt8 as StaticInt8
    from flyweight.techniques.structured import StructuredPruning as StructuredPruning
    from flyweight.techniques.student import Student as Student
    from flyweight.techniques.trained_codes import TrainedCodes as TrainedCodes
    from flyweight.techniques.vocabulary import Vocabulary as Vocabulary
    from flyweight.training.logits import Ensemble as Ensemble
    from flyweight.training.logits import LogitsTeacher as LogitsTeacher
    from flyweight.training.loop import TrainingSettings as TrainingSettings
    from flyweight.training.teacher import import_teacher as import_teacher
    from flyweight.training.teacher import train as train

_PUBLIC = {
    "load_data": "data.load",
    "read_messages": "data.load",
    "NLUData": "data.messages",
    "train": "training.teacher",
    "import_teacher": "training.teacher",
    "LogitsTeacher": "training.logits",
    "Ensemble": "training.logits",
    "TrainingSettings": "training.loop",
    "NLUModel": "model.nlu",
    "compress": "recipe",
    "Recipe": "recipe",
    "Receipt": "receipt",
    "Codebook": "techniques.codebook",
    "GPTQ": "techniques.gptq",
    "Int8": "techniques.int8",
    "StaticInt8": "techniques.static_int8",
    "HiddenPruning": "techniques.hidden_pruning",
    "StructuredPruning": "techniques.structured",
    "MixedPrecision": "techniques.mixed_precision",
    "QAT": "techniques.qat",
    "Magnitude": "techniques.magnitude",
    "Movement": "techniques.movement",
    "HeadPruning": "techniques.head_pruning",
    "NeuronPruning": "techniques.neuron_pruning",
    "LayerPruning": "techniques.layer_pruning",
    "MaskSearch": "techniques.mask_search",
    "Vocabulary": "techniques.vocabulary",
    "Student": "techniques.student",
    "Distillation": "techniques.distillation",
    "TrainedCodes": "techniques.trained_codes",
    "save": "export.fly",
    "load": "runtime.parser",
    "Parser": "runtime.parser",
    "evaluate": "measure.quality",
    "FlyweightError": "errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'flyweight' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"flyweight.{_PUBLIC[name]}"), name)
    globals()[name] = value  # also puts the function, not a submodule of its name, into the package
    return value


def __dir__() -> list[str]:
    """Public names."""
    return sorted(__all__)
