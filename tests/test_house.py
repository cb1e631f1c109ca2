"""What is installed: every package, and never a top-level `kernels`, which is a link to `pabee_fast/kernels`.

Hugging Face's PyPI package `kernels` has the name of our folder, and transformers imports from it when it is there. So
each way of installing is tried without it, with a stub of it and with the package itself, from the repository's root
(where Python finds our folder first) and from elsewhere. Everything is built from a copy, in environments that borrow
the packages of the one that runs the tests.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import HeaderParser
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "pabee_fast", "kernels")
PROBE = """
import importlib.util, json, sys
from pathlib import Path
import pabee_fast
from pabee_fast.kernels import reference
from transformers import BertForSequenceClassification
from transformers.utils import is_kernels_available
package = importlib.util.find_spec("pabee_fast.kernels")
folders = [Path(folder).resolve() for folder in package.submodule_search_locations]
modules = [path.stem for folder in folders for path in folder.glob("*.py")]
top_level = importlib.util.find_spec("kernels")
print(json.dumps({
    "package": pabee_fast.__file__,
    "origins": {name: importlib.util.find_spec(f"pabee_fast.kernels.{name}").origin for name in modules},
    "names_of_ours": sorted(
        name
        for name, module in list(sys.modules.items())
        if getattr(module, "__file__", None) and Path(module.__file__).resolve().parent in folders
    ),
    "top_level": top_level and top_level.origin,
    "used_by_transformers": is_kernels_available(),
}))
"""
# Takes the place of every name that transformers imports from the package; as a decorator it returns what it decorates.
STUB = """
class Anything:
    def __init__(self, *args, **kwargs): ...
    def __call__(self, decorated): return decorated

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything
"""


def run(*command: str | Path, cwd: Path, timeout: float | None = None, python_path: Path | None = None) -> str:
    """Return what a command prints; what it says of a failure goes with the error. `timeout` in seconds."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if python_path:
        variables["PYTHONPATH"] = str(python_path)
    try:
        done = subprocess.run(
            command, cwd=cwd, env=variables, timeout=timeout, capture_output=True, text=True, check=True
        )
    except subprocess.CalledProcessError as error:
        error.add_note(f"{error.stdout}\n{error.stderr}")
        raise
    return done.stdout


def pip(*arguments: str | Path, cwd: Path, timeout: float | None = None) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd, timeout=timeout)


class Environment:
    """A virtual environment that sees this one's packages after its own."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=os.name != "nt")
        base = {"base": str(folder), "platbase": str(folder)}
        self.python = Path(sysconfig.get_path("scripts", "venv", base)) / "python"
        self.packages = Path(sysconfig.get_path("purelib", "venv", base))
        borrowed = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
        (self.packages / "borrowed.pth").write_text("\n".join(borrowed))

    def install(self, *arguments: str | Path, cwd: Path, timeout: float | None = None) -> str:
        return pip("--python", self.python, "install", *arguments, cwd=cwd, timeout=timeout)

    def probe(self, cwd: Path, kernels: Path | None) -> dict[str, Any]:
        """Import everything from `cwd`, with the package `kernels` in the folder of that name if there is one."""
        output = run(self.python, "-c", PROBE, cwd=cwd, python_path=kernels)
        record: dict[str, Any] = json.loads(output.splitlines()[-1])
        return record


def copy_of_sources(root: Path, folder: Path) -> Path:
    """Copy what is packaged to a new folder: builds leave files in their source tree."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    folder.mkdir()
    for name in SOURCES:
        if (root / name).is_symlink():
            (folder / name).symlink_to(os.readlink(root / name))
        elif (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=unwanted)
        else:
            shutil.copy2(root / name, folder)
    return folder


def build_wheel(source: Path, folder: Path) -> Path:
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder.parent)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's root, as far as packaging knows it."""
    return copy_of_sources(ROOT, tmp_path_factory.mktemp("house") / "root")


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    return build_wheel(tree, tree.parent / "wheel")


@pytest.fixture(scope="module")
def environments(tree: Path, wheel: Path) -> dict[str, Environment]:
    """An environment for each way of installing."""
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    made = {way: Environment(tree.parent / way) for way in ("from_wheel", "editable")}
    made["from_wheel"].install(*offline, wheel, cwd=tree.parent)
    made["editable"].install(*offline, "--editable", tree, cwd=tree.parent)
    return made


def versions_that_transformers_uses() -> SpecifierSet:
    """The versions of the package `kernels` that transformers imports from."""
    return next(Requirement(line).specifier for line in requires("transformers") or () if line.startswith("kernels"))


@pytest.fixture(scope="module")
def stub(tree: Path) -> Path:
    """A folder with a package `kernels` that transformers imports from."""
    version = next(clause.version for clause in versions_that_transformers_uses() if clause.operator == ">=")
    folder = tree.parent / "stub"
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "__init__.py").write_text(STUB)
    (folder / f"kernels-{version}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n"
    (folder / f"kernels-{version}.dist-info" / "METADATA").write_text(metadata)
    return folder


@pytest.fixture(scope="module")
def real(tree: Path) -> Path:
    """The PyPI package `kernels`, with what it needs beyond this environment's packages."""
    environment = Environment(tree.parent / "real")
    try:
        environment.install("--quiet", "--retries", "0", "--timeout", "20", "kernels", cwd=tree.parent, timeout=120)
        return environment.packages
    except subprocess.TimeoutExpired as error:
        reason = f"no answer in {error.timeout:.0f} s"
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1]
    pytest.skip(f"the PyPI package kernels cannot be installed here, its stub stands for it: {reason}")


@pytest.fixture
def kernels(request: pytest.FixtureRequest) -> Path | None:
    """The folder that holds the package `kernels`, or None."""
    if request.param != "none":
        folder: Path = request.getfixturevalue(request.param)
        return folder
    if (found := find_spec("kernels")) and found.origin:
        pytest.skip(f"this environment has a package kernels ({found.origin}); the other cases cover it")
    return None


def packaged_files(tree: Path) -> set[str]:
    """Every file of the package's folders, those behind the link under the name they are imported by."""
    walk = os.walk(tree / "pabee_fast", followlinks=True)
    paths = (Path(folder, name) for folder, _, names in walk for name in names)
    return {path.relative_to(tree).as_posix() for path in paths if path.suffix != ".pyc"}


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_link_to_kernels_is_relative() -> None:
    assert os.readlink(ROOT / "kernels") == os.path.join("pabee_fast", "kernels")


def test_no_folder_named_kernels_is_a_regular_package() -> None:
    marked = [
        path for room in (".", "pabee_fast", "tests", "bench") for path in (ROOT / room).glob("kernels/__init__.py")
    ]
    assert marked == [], "with an __init__.py the folder takes the place of the PyPI package kernels"


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(tree: Path, wheel: Path) -> None:
    files = {name for name in wheel_files(wheel) if ".dist-info/" not in name}
    assert files == packaged_files(tree)
    assert {"pabee_fast/py.typed", "pabee_fast/kernels/reference.py"} <= files


def test_a_wheel_says_its_licence_command_and_only_top_level_name(wheel: Path) -> None:
    files = {name.partition(".dist-info/")[2]: content.decode() for name, content in wheel_files(wheel).items()}
    metadata = HeaderParser().parsestr(files["METADATA"])
    assert (metadata["Name"], metadata["License-Expression"]) == ("pabee-fast", "Apache-2.0")
    assert "pabee-fast = pabee_fast.cli:main" in files["entry_points.txt"]
    assert files["top_level.txt"].split() == ["pabee_fast"]
    assert "Apache License" in files["licenses/LICENSE"]


def test_a_source_distribution_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", build, cwd=copy_of_sources(tree, tmp_path / "source"))
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert not (source / "kernels").exists()
    assert wheel_files(build_wheel(source, tmp_path / "wheel")) == wheel_files(wheel)


@pytest.mark.parametrize(
    ("way", "place", "kernels"),
    [
        ("from_wheel", "elsewhere", "none"),
        ("from_wheel", "elsewhere", "stub"),
        ("editable", "elsewhere", "stub"),
        ("editable", "at_the_root", "none"),
        ("editable", "at_the_root", "stub"),
        ("editable", "at_the_root", "real"),
    ],
    indirect=["kernels"],
)
def test_kernels_are_ours_under_one_name_and_the_package_kernels_is_left_alone(
    tree: Path, environments: dict[str, Environment], way: str, place: str, kernels: Path | None, tmp_path: Path
) -> None:
    found = environments[way].probe(tree if place == "at_the_root" else tmp_path, kernels)

    home = tree if way == "editable" else environments[way].packages
    assert Path(found["package"]) == home / "pabee_fast" / "__init__.py"
    assert {Path(origin) for origin in found["origins"].values()} == set((home / "pabee_fast" / "kernels").glob("*.py"))
    assert all(name.startswith("pabee_fast.kernels.") for name in found["names_of_ours"])
    assert "pabee_fast.kernels.reference" in found["names_of_ours"]
    if kernels is None:
        assert found["top_level"] is None
        assert not found["used_by_transformers"]
    else:
        assert Path(found["top_level"]) == kernels / "kernels" / "__init__.py"
        (info,) = kernels.glob("kernels-*.dist-info")
        version = info.stem.removeprefix("kernels-")
        assert found["used_by_transformers"] == versions_that_transformers_uses().contains(version)


def test_every_requirement_is_pinned_to_a_version_that_it_admits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pins: dict[str, SpecifierSet] = {}
    for line in re.sub(r"(?m)\s*#.*$", "", (ROOT / "constraints.txt").read_text()).split():
        pin = Requirement(line)
        pins[canonicalize_name(pin.name)] = pin.specifier
    ours = canonicalize_name(project["name"])
    for wanted in (Requirement(line) for line in lines):
        if canonicalize_name(wanted.name) == ours:
            continue
        pinned = {clause.version for clause in pins[canonicalize_name(wanted.name)]}
        assert all(wanted.specifier.contains(version) for version in pinned), f"{wanted} against {pinned}"
