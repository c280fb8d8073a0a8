"""Compiles one model: loads it, checks the card against it, converts it, proves the conversions, writes the fastest."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..answers import check_expected, record
from ..engines import Engine, EngineError, Tensors, load_engine
from ..inputs import InputError, encode_example, nearest
from ..manifest import (
    CANARY,
    STABLE,
    VERSIONS,
    Example,
    InputSpec,
    Manifest,
    OutputSpec,
    TensorSpec,
    example_files,
    takes_image,
    takes_numbers,
    write_manifest,
    write_versions,
)
from . import CompileError
from .card import (
    BinaryOutput,
    Card,
    ClassesOutput,
    ColumnsInput,
    ImageInput,
    ImageOutput,
    NumbersOutput,
    TensorInput,
    find_versions,
    load_card,
    load_versions,
)
from .convert import CANDIDATES, Candidate, Probe, compare, make_probes, reason
from .measure import LARGE, ROWS, choose, measure, question, speed, write_measured
from .sources import Source, load_source


@dataclass(frozen=True)
class _Proven:
    """An engine that answers as the model does, and the largest difference."""

    candidate: Candidate
    engine: Engine
    difference: float


@dataclass(frozen=True)
class _Choice:
    """The engine that serves the model, the seconds a call of each that could, by name, and why the others cannot."""

    candidate: Candidate
    difference: float
    seconds: dict[str, float]
    refusals: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What the command prints about one model, or one version of it (cats.2).

    `engine` is its name for people, `speed` how fast it is, `size` is in bytes, `largest_difference` is between the
    engine's answers and the model's own. `others` has the speed of each other engine that could serve the model, by its
    name for people, `refusals` say why the rest cannot, and of `recorded` examples the answer is the model's own.
    `warnings` are sentences.
    """

    name: str
    source_format: str
    engine: str
    speed: str
    size: int
    largest_difference: float
    seconds: float
    others: dict[str, str]
    refusals: tuple[str, ...]
    recorded: int
    warnings: tuple[str, ...]


def compile_model(folder: Path, compiled: Path, version: str = "") -> Report:
    """Compile the model in `folder` into `compiled`/<its name>, replacing what was there in one step.

    Of a model with several versions, one `version` is compiled, into a folder of that name below it.

    Equal input gives an equal folder, to the byte, the mode and the time stamp, except for measured.json. Raises
    CardError or CompileError, and then leaves what was there.
    """
    start = time.monotonic()
    card = load_card(folder, version)
    part = f"{card.name}.{version}" if version else card.name
    target = compiled / card.name / version
    partial = compiled / f".{part}.partial"
    try:
        compiled.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise CompileError(
            f"{compiled}: cannot be written ({error.strerror}). Make it writable for uid {os.getuid()}."
        ) from None
    try:
        with tempfile.TemporaryDirectory(prefix="compile-") as scratch, _quiet():
            manifest, choice, warnings = _compile(card, partial, Path(scratch))
        write_manifest(manifest, partial)
        write_measured(choice.seconds, card.goal, partial)
        _normalise(partial)
        target.parent.mkdir(exist_ok=True)
        _replace(partial, target)
    except CompileError as error:
        message = str(error)
        where = folder / version
        raise CompileError(message if str(where) in message else f"{where}: {message}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Report(
        name=part,
        source_format=manifest.source_format,
        engine=choice.candidate.title,
        speed=speed(choice.seconds[manifest.engine], card.goal),
        size=_size(target / manifest.file),
        largest_difference=choice.difference,
        seconds=time.monotonic() - start,
        others={
            candidate.title: speed(choice.seconds[candidate.engine], card.goal)
            for candidate in CANDIDATES
            if candidate.engine in choice.seconds and candidate != choice.candidate
        },
        refusals=choice.refusals,
        recorded=sum(example.expect is None for example in card.examples),
        warnings=warnings,
    )


def _compile(card: Card, folder: Path, scratch: Path) -> tuple[Manifest, _Choice, tuple[str, ...]]:
    source = load_source(card, scratch)
    draft = _draft(card, source)
    for example in draft.examples:
        for name in example_files(example.input, draft.pictures):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(card.file(name), folder / name)
    encoded = {}
    for example in draft.examples:
        try:
            encoded[example.name] = encode_example(draft, example, folder)
        except InputError as error:
            file = any(text.startswith("examples/") for text in _texts(example.input))
            hint = " If that text names a picture's file, give the input kind: image in the card." if file else ""
            raise CompileError(f"{card.path}: example {example.name}: {error}.{hint}") from None
    probes = make_probes(source, draft.inputs, encoded)
    answers = {probe.name: probe.answer for probe in probes}
    tried = probes[len(encoded)].inputs  # the first random ones
    draft = replace(draft, inputs=tuple(replace(spec, row_shape=tried[spec.name].shape[1:]) for spec in draft.inputs))
    draft = replace(
        draft, examples=tuple(_recorded(draft, one, answers[f"example {one.name}"]) for one in draft.examples)
    )
    for example in draft.examples:
        if wrong := check_expected(draft, answers[f"example {example.name}"], example):
            raise CompileError(f"{card.path}: {wrong}. Correct the card, or train the model again.")
    choice = _choose(card, source, draft, folder, probes)
    manifest = replace(draft, engine=choice.candidate.engine, file=choice.candidate.file)
    return manifest, choice, tuple(_warnings(card, source, draft, probes))


def _choose(card: Card, source: Source, draft: Manifest, folder: Path, probes: list[Probe]) -> _Choice:
    """Convert the model for the engines, and leave the file of the one that serves it. Raises CompileError."""
    asked = question(probes, ROWS[card.goal])
    large = _size(source.saved_model) > LARGE
    proven: dict[str, _Proven] = {}
    refusals: list[str] = []
    for candidate in CANDIDATES:
        if card.engine not in (None, candidate.engine):
            continue
        if proven and (candidate.last_resort or large):
            if not candidate.last_resort:
                refusals.append(f"{candidate.title}: not tried, as the model has more than {LARGE // 10**6} MB")
            continue
        try:
            proven[candidate.engine] = _try(candidate, source, draft, folder, probes, asked)
        except Exception as error:  # converters raise anything
            refusals.append(f"{candidate.title}: {reason(error)}")
    if not proven and card.engine:
        raise CompileError(
            f"{card.path}: engine: {card.engine} cannot serve this model. {'; '.join(refusals)}. "
            "Leave engine out of the card, or choose another one."
        )
    if not proven:
        raise CompileError("no engine answers as the model does. " + "; ".join(refusals))
    seconds = measure({name: one.engine for name, one in proven.items()}, asked)
    chosen = proven[choose(seconds)]
    for one in proven.values():
        if one is not chosen:
            _remove(folder / one.candidate.file)
    return _Choice(chosen.candidate, chosen.difference, seconds, tuple(refusals))


def _try(
    candidate: Candidate, source: Source, draft: Manifest, folder: Path, probes: list[Probe], asked: Tensors
) -> _Proven:
    """Convert the model and compare, and ask what is to be measured. The file is removed if any of it fails."""
    path = folder / candidate.file
    try:
        candidate.convert(source, path)
        engine = load_engine(replace(draft, engine=candidate.engine, file=candidate.file), folder)
        difference = compare(engine, probes, draft.outputs)
        inputs = {probe.name: probe.inputs for probe in probes}
        for example in draft.examples:  # as the server will: an answer may be near enough to the model's, but not right
            if wrong := check_expected(draft, engine.run(inputs[f"example {example.name}"]), example):
                raise EngineError(wrong)
        engine.run(asked)
    except BaseException:
        _remove(path)
        raise
    return _Proven(candidate, engine, difference)


def _recorded(draft: Manifest, example: Example, answer: Tensors) -> Example:
    return example if example.expect else replace(example, expect=record(draft, answer))


# ---------------------------------------------------------------- what the card may get wrong unnoticed

# Layers that can bring pixels into the model's range.
SCALING = {"Rescaling", "Normalization", "Lambda", "TFOpLambda", "TrueDivide", "Divide", "Subtract", "Multiply"}
SATURATED = 1e-3


def _warnings(card: Card, source: Source, draft: Manifest, probes: list[Probe]) -> Iterator[str]:
    """Yield what leaves a wrong scale unnoticed."""
    if not draft.examples:
        yield "no example, so nothing checks the answers of a release before it serves. Add examples to the card."
    for name, given in card.inputs.items():
        unscaled = isinstance(given, ImageInput) and "scale" not in given.model_fields_set
        if unscaled and source.layers is not None and not source.layers & SCALING:
            yield (
                f"inputs.{name} has no scale, and no layer of the model rescales: the model gets pixels of 0 … 255. "
                "Write the scale that it was trained with, such as scale: 1/255, or scale: 1 if that is right."
            )
    for spec in draft.outputs:
        answers = [probe.answer[spec.name] for probe in probes]
        if isinstance(card.outputs.get(spec.name), ImageOutput):
            if spec.scale == 1 and all((np.abs(answer) <= 1.5).all() for answer in answers):
                yield (
                    f"outputs.{spec.name}: all numbers are within -1.5 … 1.5, so its pictures are black. Write the "
                    "scale of a pixel, such as scale: 1/255."
                )
        elif spec.dtype.startswith("float") and all(map(_saturated, answers)):
            yield (
                f"outputs.{spec.name}: every answer, to the examples and to random input, is 0 or 1 to three digits, "
                "which may hide a wrong scale. Add an example whose answer lies in between, and expect that number."
            )


def _saturated(answer: np.ndarray) -> bool:
    """Return whether all scores say yes or no without doubt; of several classes, the likeliest."""
    rows = answer.reshape(-1, answer.shape[-1]) if answer.ndim > 1 else answer.reshape(-1, 1)
    top = rows.max(axis=1, initial=-np.inf)
    near = np.abs(1 - top) < SATURATED
    if rows.shape[1] == 1:
        near |= np.abs(top) < SATURATED
    return bool(near.all() and (rows > -SATURATED).all())


# ---------------------------------------------------------------- the card against the model


def _draft(card: Card, source: Source) -> Manifest:
    """Check the card against the model's own inputs and outputs; return the manifest, which lacks only the engine."""
    _known(card, "inputs", card.inputs, source.inputs)
    _known(card, "outputs", card.outputs, source.outputs)
    inputs = tuple(_input(card, spec) for spec in source.inputs)
    outputs = tuple(_output(card, spec) for spec in source.outputs)
    draft = Manifest(
        name=card.name,
        version=card.version or "1",
        title=card.title or card.name,
        description=card.description,
        engine="",
        file="",
        source_format=source.format,
        signature=source.signature,
        inputs=inputs,
        outputs=outputs,
        examples=tuple(_examples(card, outputs)),
        predict=card.predict,
    )
    if card.predict and not (takes_image(draft) or takes_numbers(draft)):
        raise CompileError(
            f"{card.path}: predict: POST /predict takes a picture or rows of numbers; this model takes neither. "
            "Remove it."
        )
    return draft


def _known(card: Card, field: str, names: Iterable[str], specs: list[TensorSpec]) -> None:
    own = [spec.name for spec in specs]
    for name in names:
        if name not in own:
            raise CompileError(
                f"{card.path}: {field}.{name}: the model has no such {field[:-1]}{nearest(name, own)}; its {field}: "
                f"{', '.join(own)}."
            )


def _shape(spec: TensorSpec) -> str:
    return str([None if size < 0 else size for size in spec.shape]).replace("None", "any")


def _input(card: Card, spec: TensorSpec) -> InputSpec:
    given = card.inputs.get(spec.name, TensorInput(kind="tensor"))
    where = f"{card.path}: inputs.{spec.name}"
    fields = given.model_dump()
    if isinstance(given, ImageInput):
        channels = spec.shape[3] if len(spec.shape) == 4 else 1
        if len(spec.shape) not in (3, 4) or channels not in (1, 3) or spec.dtype == "string":
            raise CompileError(
                f"{where}: kind: image needs numbers of shape [any, height, width, 1 or 3]; the model takes "
                f"{spec.dtype} {_shape(spec)}. Leave this input out of the card, or choose another kind."
            )
        color = "rgb" if channels == 3 else "grayscale"
        if given.color not in (None, color):
            raise CompileError(
                f"{where}: color: {given.color} does not fit {channels} channel{'s' if channels > 1 else ''}; "
                f"write {color} or leave it out."
            )
        fields["color"] = color
    if isinstance(given, ColumnsInput) and (len(spec.shape) != 2 or spec.shape[1] != len(given.columns)):
        raise CompileError(
            f"{where}: columns: {len(given.columns)} names for shape {_shape(spec)}; the model takes "
            f"{spec.shape[1] if len(spec.shape) == 2 else 'no single row of'} numbers. Name each column "
            "once, in its order."
        )
    row_shape = fields.pop("shape", ())
    if row_shape and (
        len(row_shape) != len(spec.shape) - 1
        or any(own not in (-1, size) for size, own in zip(row_shape, spec.shape[1:], strict=True))
    ):
        raise CompileError(
            f"{where}: shape: a row of {list(row_shape)} does not fit the model, which takes {_shape(spec)}. Write one "
            "number for each size after the first, which is the batch, and change free ones (any) only."
        )
    return InputSpec(**{**asdict(spec), **fields, "row_shape": row_shape})


def _output(card: Card, spec: TensorSpec) -> OutputSpec:
    given = card.outputs.get(spec.name, NumbersOutput(kind="numbers"))
    where = f"{card.path}: outputs.{spec.name}"
    if isinstance(given, ClassesOutput) and (len(spec.shape) < 2 or spec.shape[-1] != len(given.labels)):
        has = (
            f"{spec.shape[-1]} classes" if len(spec.shape) > 1 and spec.shape[-1] > 0 else "no fixed number of classes"
        )
        raise CompileError(
            f"{where}: labels: {len(given.labels)} labels, but the model answers {has}: the last size of its shape "
            f"{_shape(spec)} is the number of classes. Write one label per class."
        )
    if isinstance(given, BinaryOutput) and len(spec.shape) > 1 and spec.shape[-1] != 1:
        raise CompileError(
            f"{where}: kind: binary is one probability, alone or as the last size of the shape; the model answers "
            f"{_shape(spec)}. Use kind: classes with one label per class."
        )
    if isinstance(given, ImageOutput) and (
        len(spec.shape) not in (3, 4) or spec.shape[3:] not in ((), (1,), (3,)) or spec.dtype == "string"
    ):
        raise CompileError(
            f"{where}: kind: image needs numbers of shape [any, height, width, 1 or 3]; the model answers {spec.dtype} "
            f"{_shape(spec)}. Leave this output out of the card, or choose another kind."
        )
    return OutputSpec(**{**asdict(spec), **given.model_dump()})


def _examples(card: Card, outputs: tuple[OutputSpec, ...]) -> Iterator[Example]:
    """Yield the card's examples with `expect` by output name, which the card may leave out if there is one output.

    An example without `expect` has an empty one: the model's own answer is not known yet.
    """
    known = {spec.name: spec for spec in outputs}
    for example in card.examples:
        where = f"{card.path}: example {example.name}: expect"
        expect: Any = example.expect
        if expect is None:
            yield Example(example.name, example.input, {}, example.tolerance)
            continue
        if not isinstance(expect, dict):
            if len(outputs) > 1:
                raise CompileError(
                    f"{where}: the model has several outputs; write {{{', '.join(f'{o}: …' for o in known)}}}."
                )
            expect = {outputs[0].name: expect}
        if not expect:
            raise CompileError(f"{where}: nothing is expected; name an output and its answer, or leave expect out.")
        for name, value in expect.items():
            if name not in known:
                raise CompileError(f"{where}: the model has no output {name}; its outputs: {', '.join(known)}.")
            spec = known[name]
            if isinstance(value, dict):  # only a recorded answer is one
                raise CompileError(f"{where}: {name}: an object is not an answer; write a label, a number or a list.")
            unknown = [text for text in _texts(value) if text not in spec.labels]
            if unknown and spec.dtype != "string":
                labels = f"its labels: {', '.join(spec.labels)}" if spec.labels else "it has no labels; write a number"
                raise CompileError(f"{where}: {name} has no label {unknown[0]!r}; {labels}.")
        yield Example(example.name, example.input, dict(expect), example.tolerance)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


# ---------------------------------------------------------------- files


def label_versions(folder: Path, compiled: Path) -> str:
    """Write into `compiled` what the card says of the versions of the model in `folder`; return it as a line.

    From then on, the compiled versions count, and not what was compiled before the model had any. Raises CardError.
    """
    card = load_versions(folder)
    labels = {label: str(version) for label, version in card.labels.items()}
    default = labels.get(STABLE, find_versions(folder)[-1])
    target = compiled / folder.name
    target.mkdir(parents=True, exist_ok=True)
    write_versions(labels, card.canary_share, target)
    for path in (target / VERSIONS, target):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (0, 0))
    share = f"{100 * card.canary_share:.3g} %"
    canary = f", but {share} of them, at random, to {labels[CANARY]}" if card.canary_share else ""
    return f"{folder.name}: requests that name no version go to {default}{canary}"


def _normalise(folder: Path) -> None:
    """Set all times to 0 and all modes to 755 or 644, so that an image layer depends on the folder's content alone."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in sorted([*folder.rglob("*"), folder], reverse=True):
        os.utime(path, (0, 0))


def _replace(new: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what the converters print. They print from C++, past Python's streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as sink:
        saved = os.dup(1), os.dup(2)
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(saved, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
