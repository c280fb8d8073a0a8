"""The filters of role model_image: faults in a folder of models, names by content, the compiler's table, pruning."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import plugin
from host import ROOT

MODELS = plugin("filter/models.py")

APP = {
    "Dockerfile": "d",
    "model_server/app.py": "a",
    "model_server/compile/build.py": "b",
    "requirements/runtime.txt": "r",
    "requirements/test.txt": "t",
    "requirements/toolchain.txt": "c",
    "tests/Dockerfile": "e",
}
FILES = {"cats/cats.keras": "1", "cats/model.yml": "2", "dogs/dogs.h5": "3"}


def test_files_are_known_by_their_path_below_the_folder() -> None:
    found = [{"path": f"/role/../models/{path}", "checksum": checksum} for path, checksum in FILES.items()]
    assert MODELS.file_sums(found, "/role/../models") == FILES
    assert MODELS.file_sums(found, "/models", "dogs") == {"dogs/dogs.h5": "3"}
    assert MODELS.file_sums(found, "/models", "dog") == {}


def test_every_file_and_folder_that_no_model_is_built_from_is_a_fault() -> None:
    files = ["My Cats/cats.keras", "cats/model.yaml", "cats/sub/model.yaml", "dogs/2/model.yaml", "stray.h5"]
    assert MODELS.model_faults(files, ["My Cats", "cats", "dogs", "empty"], "/m") == [
        "/m/cats/model.yaml is ignored. Rename it to model.yml.",
        "/m/dogs/2/model.yaml is ignored. Rename it to model.yml.",
        "/m/stray.h5 is beside the model folders. Move it into a folder of its own.",
        "/m/My Cats has a name that cannot be part of an address."
        " Rename it, with lower-case letters, digits, _ and - only.",
        "/m/empty is empty. Add a model, or remove the folder.",
    ]
    assert MODELS.model_names(files) == ["cats", "dogs"]
    assert MODELS.model_faults(FILES, ["cats", "dogs"], "/m") == []
    assert MODELS.model_faults([], [], "/m") == ["/m has no models. Put each model into a folder of its own there."]


VERSIONS = {
    "cats/1/cats.keras": "1",
    "cats/10/cats.keras": "10",
    "cats/2/cats.keras": "2",
    "cats/examples/tom.png": "e",
    "cats/model.yml": "c",
    "dogs/dogs.h5": "3",
    "dogs/model.yml": "4",
}
CARDS = {"cats": "title: Cats"}


def hashes(app: dict[str, str] = APP, models: dict[str, str] = FILES, **others: Any) -> dict[str, Any]:
    settings = {"base": "sha256:b", "architecture": "amd64", "compile_task": "compile", "cards": {}} | others
    found: dict[str, Any] = MODELS.content_hashes(app, models, **settings)
    return found


def changed(**inputs: Any) -> set[str]:
    """Which hashes are others than those of the plain inputs; a model's by its name."""
    before, after = (each | each["versions"] for each in (hashes(), hashes(**inputs)))
    return {name for name in ("toolchain", "image", "cats", "dogs") if before[name] != after[name]}


def test_a_name_has_the_hash_of_what_goes_in_and_of_nothing_else() -> None:
    assert changed() == set()
    assert changed(models=dict(reversed(FILES.items()))) == set()
    assert changed(models=FILES | {"cats/model.yml": "x"}) == {"cats", "image"}
    assert changed(app=APP | {"model_server/app.py": "x"}) == {"image"}
    assert changed(app=APP | {"model_server/compile/build.py": "x"}) == {"cats", "dogs", "image"}
    assert changed(app=APP | {"requirements/toolchain.txt": "x"}) == {"toolchain", "cats", "dogs", "image"}
    assert changed(app=APP | {"requirements/test.txt": "x", "tests/Dockerfile": "x"}) == set()
    assert changed(base="x") == {"toolchain", "cats", "dogs", "image"}
    assert changed(architecture="x") == {"image"}
    assert changed(compile_task="x") == {"cats", "dogs", "image"}

    named = hashes()
    assert named["compiled"] == [f"{name}-{named['versions'][name]}" for name in ("cats", "dogs")]
    assert all(len(version) == 12 for version in named["versions"].values())
    runtime = MODELS.runtime_hash(APP, "sha256:b", "litert")
    assert runtime == MODELS.runtime_hash(APP | {"requirements/test.txt": "x"}, "sha256:b", "litert")
    assert runtime != MODELS.runtime_hash(APP, "sha256:b", "litert onnx")


def changed_versions(**inputs: Any) -> set[str]:
    """Which parts of two models, one with versions, are compiled anew, added or removed."""
    before, after = (set(hashes(**all_)["compiled"]) for all_ in ({"models": VERSIONS, "cards": CARDS}, inputs))
    return {part.rpartition("-")[0] for part in before ^ after}


def test_each_version_of_a_model_has_the_hash_of_what_goes_into_it() -> None:
    plain = {"models": VERSIONS, "cards": CARDS}
    assert list(hashes(**plain)["versions"]) == ["cats", "cats.1", "cats.2", "cats.10", "dogs"]
    assert hashes(**plain)["models"] == ["cats", "dogs"]
    assert changed_versions(**plain) == set()
    assert changed_versions(models=VERSIONS | {"cats/2/cats.keras": "x"}, cards=CARDS) == {"cats.2"}
    assert changed_versions(models=VERSIONS | {"cats/examples/tom.png": "x"}, cards=CARDS) == {
        "cats.1",
        "cats.2",
        "cats.10",
    }
    # labels, which are on the card, but not in what the versions get of it
    assert changed_versions(models=VERSIONS | {"cats/model.yml": "x"}, cards=CARDS) == {"cats"}
    assert changed_versions(models=VERSIONS | {"cats/model.yml": "x"}, cards={"cats": "title: x"}) == {
        "cats",
        "cats.1",
        "cats.2",
        "cats.10",
    }
    own = VERSIONS | {"cats/2/model.yml": "o"}
    assert changed_versions(models=own, cards=CARDS) == {"cats.2"}
    before, after = (hashes(models=own, cards={"cats": text})["versions"]["cats.2"] for text in ("a", "b"))
    assert before == after
    fewer = {path: checksum for path, checksum in VERSIONS.items() if "/10/" not in path}
    assert changed_versions(models=fewer, cards=CARDS) == {"cats", "cats.10"}


@pytest.mark.parametrize(
    ("card", "other", "equal"),
    [
        (
            "title: a\nexamples: []\n",
            "title: a\nversions:\n  labels: {b: 1}\n\n  canary_share: 0.1\nexamples: []",
            True,
        ),
        ("title: a\n", "title: a\n# labels\nversions: {labels: {b: 1}} # of the folders\n", True),
        ("{title: a}", "{title: a, versions: {labels: {b: 1}}}", True),
        ("title: a", "title: b", False),
        ("labels: ['7', no]", "labels: [7, no]", False),
        ("labels: [no]", "labels: [false]", False),
        ("text: |\n  versions: 3\n", "text: |\n  versions: 4\n", False),
        ("title: [a\nversions: {}\n", "title: [a\nversions: {b: 1}\n", False),
        ("- a", "- b", False),
    ],
)
def test_a_version_gets_of_the_shared_card_what_is_not_about_versions(
    tmp_path: Path, card: str, other: str, equal: bool
) -> None:
    for name, text in (("cats", card), ("dogs", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.yml").write_text(text)
    files = ["cats/1/cats.keras", "dogs/1/dogs.keras", "none/1/none.keras", "unversioned/model.yml"]
    cards = MODELS.versioned_cards(files, str(tmp_path))
    assert cards.keys() == {"cats", "dogs"}
    assert (cards["cats"] == cards["dogs"]) == equal


def test_models_of_which_a_part_was_not_compiled_are_left_out() -> None:
    parts = ["cats-01", "cats.1-02", "cats.2-03", "cats-even-04", "dogs-05"]
    assert MODELS.whole_models(parts, ["cats-01", "cats.1-02", "cats-even-04", "other-06"]) == ["cats-even-04"]
    assert MODELS.whole_models(parts, parts) == parts


def test_a_model_is_compiled_anew_when_anything_that_the_compiler_imports_changes() -> None:
    package = ROOT / "app/model_server"
    waiting, seen = list((package / "compile").glob("*.py")), set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        for node in ast.walk(ast.parse(module.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            folder = module.parents[node.level - 1]
            names = [node.module.replace(".", "/")] if node.module else [alias.name for alias in node.names]
            waiting += {path for name in names if (path := folder / f"{name}.py").exists() and path not in seen}
    paths = [path.relative_to(package.parent).as_posix() for path in sorted(seen)]
    assert len(paths) > 5
    assert [path for path in paths if not MODELS.COMPILER.match(path)] == []


def test_what_the_compiler_refused_is_said_with_the_paths_of_this_machine() -> None:
    results = [
        {"model_image_compiling": "cats-0123456789ab", "rc": 0, "stderr": ""},
        {
            "model_image_compiling": "dogs-0123456789ab",
            "rc": 1,
            "stderr": "noise\nERROR /models/dogs/model.yml: titel\nERROR /models/dogs/model.yml: see /x/models/y\n",
        },
        {"model_image_compiling": "wine-red-0123456789ab", "rc": 137, "stderr": "Compiling wine-red …"},
        {"model_image_compiling": "rice.2-0123456789ab", "rc": 137, "stderr": "Compiling rice.2 …"},
        {"model_image_compiling": "ham.1-0123456789ab", "rc": 1, "stderr": "ERROR /models/ham/model.yml: titel"},
        {
            "model_image_compiling": "ham.2-0123456789ab",
            "rc": 1,
            "stderr": "ERROR /models/ham/model.yml: titel\nERROR /models/ham/2: none",
        },
        {"model_image_compiling": "ham-0123456789ab", "rc": 1, "stderr": "ERROR /models/ham/model.yml: titel"},
    ]
    assert MODELS.compile_faults(results, r"/a\1b") == [
        "/a\\1b/dogs/model.yml: titel\n/a\\1b/dogs/model.yml: see /x/models/y",
        "/a\\1b/wine-red was not compiled (exit code 137): Compiling wine-red …",
        "/a\\1b/rice/2 was not compiled (exit code 137): Compiling rice.2 …",
        "/a\\1b/ham/model.yml: titel",
        "/a\\1b/ham/2: none",
    ]


REPORTS = [
    """\
model  source  engine           speed       size  largest difference  seconds
-----  ------  ------  --------------  ---------  ------------------  -------
cats   keras   LiteRT  1.2 µs a call  1234.5 MB             3.1e-07     12.5
cats: ONNX Runtime would do 3.7 µs a call
""",
    """\
model      source       engine                 speed     size  largest difference  seconds
---------  -----------  ------------  --------------  -------  ------------------  -------
dogs_even  saved_model  ONNX Runtime  195,000 rows/s  47.8 kB             7.1e-08      6.1
dogs_even: not served by LiteRT: an 'op'  with  gaps
""",
]


def test_the_compilers_tables_are_joined() -> None:
    assert MODELS.compiler_table(REPORTS).splitlines() == [
        "model      source       engine                 speed       size  largest difference  seconds",
        "---------  -----------  ------------  --------------  ---------  ------------------  -------",
        "cats       keras        LiteRT         1.2 µs a call  1234.5 MB             3.1e-07     12.5",
        "dogs_even  saved_model  ONNX Runtime  195,000 rows/s    47.8 kB             7.1e-08      6.1",
        "cats: ONNX Runtime would do 3.7 µs a call",
        "dogs_even: not served by LiteRT: an 'op'  with  gaps",
    ]
    assert MODELS.compiler_table(REPORTS[1:]) == REPORTS[1].strip()
    assert MODELS.compiler_table([]) == ""


def test_engines_are_read_from_manifests_one_after_the_other() -> None:
    manifests = [{"engine": "onnx", "title": '"engine": "none"'}, {"engine": "litert"}, {"engine": "onnx"}]
    text = "\n".join(json.dumps(manifest, indent=2) for manifest in manifests)
    assert MODELS.manifest_engines(text + "\n") == ["litert", "onnx"]
    assert MODELS.manifest_engines("") == []


def image(*names: str, asked: int = 0, needs: str = "") -> dict[str, object]:
    return {"names": [f"slipway/{name}" for name in names], "asked": asked, "needs": needs}


BUILDER = [
    *(
        image(f"model-server:{n}", asked=n, needs=f"slipway/toolchain:common slipway/runtime:{n} xor-{n}.tar")
        for n in (1, 2, 3, 4)
    ),
    *(image(f"runtime:{n}") for n in (1, 2, 3, 4)),
    image("toolchain:common"),
    image("toolchain:old", "test"),
    image("base:trixie"),
    {"names": None, "asked": 9, "needs": ""},
]


@pytest.mark.parametrize(
    ("wanted", "keep", "building", "kept", "surplus"),
    [
        ("2", 2, False, ["2", "4"], ["model-server:1", "model-server:3", "runtime:1", "runtime:3", "toolchain:old"]),
        ("2", 2, True, ["2", "4"], ["model-server:1", "model-server:3"]),
        ("gone", 2, False, ["4", "3"], ["model-server:1", "model-server:2", "runtime:1", "runtime:2", "toolchain:old"]),
        ("4", 9, False, ["4", "3", "2", "1"], ["toolchain:old"]),
    ],
)
def test_the_images_asked_for_last_stay_with_what_they_were_built_of(
    wanted: str, keep: int, building: bool, kept: list[str], surplus: list[str]
) -> None:
    plan = MODELS.prune_plan(BUILDER, f"slipway/model-server:{wanted}", keep, building)
    assert plan["kept"] == [f"slipway/model-server:{n}" for n in kept]
    assert plan["surplus"] == [f"slipway/{name}" for name in surplus]
    assert {f"xor-{n}.tar" for n in kept} <= set(plan["needed"])


def test_a_builder_without_images_has_nothing_to_prune() -> None:
    assert MODELS.prune_plan([], "slipway/model-server:1", 5, False) == {"kept": [], "needed": [], "surplus": []}
