"""The house rules as functions from sources to problems, one sentence each; an empty list means that the rule holds."""

import ast
import graphlib
from collections.abc import Iterator, Mapping, Sequence

from tests.architecture.sources import Source, imports_of

FLOORS: tuple[tuple[str, ...], ...] = (
    ("trainer.errors", "trainer.command_line.suggest", "trainer.types"),
    ("trainer.schema",),
    ("trainer.protocols",),
    ("trainer.distributed",),
    ("trainer.recipes",),
    ("trainer.model",),
    ("trainer.data",),
    ("trainer.objective",),
    ("trainer.optimizer",),
    ("trainer.precision",),
    ("trainer.parallel",),
    ("trainer.state",),
    ("trainer.engine",),
    ("trainer.strategy",),
    ("trainer.checkpoint",),
    ("trainer.run_directory", "trainer.metrics"),
    ("trainer.report",),
    ("trainer.callbacks",),
    ("trainer.plan", "trainer.quantize"),
    ("trainer.evaluation",),
    ("trainer.trainer", "trainer.train_config"),
    ("trainer.command_line.overrides", "trainer.command_line.presets"),
    ("trainer.command_line.plugins", "trainer.command_line.sections", "trainer.command_line.selection"),
    ("trainer.command_line.compose",),
    ("trainer.config", "trainer.contradictions"),
    ("trainer.command_line",),
    ("trainer.session",),
    ("trainer.assembly",),
    ("trainer.run",),
    ("trainer.commands",),
    ("trainer.cli",),
    ("trainer",),
    ("trainer.__main__", "trainer.testing", "train"),
)
"""Lowest first. A package's name stands for all its modules; ``trainer`` stands for its ``__init__`` alone.

``trainer.testing`` is on top: its contract suites run whole jobs, and nothing that ships may need it.
"""

MAY_NAME_TYPES_ABOVE = {"trainer.protocols"}
"""Under TYPE_CHECKING only: a Protocol names the types that cross it, wherever they live."""

MAX_FILE = 400
MAX_FILE_OF = {"trainer/trainer.py": 350}
MAX_FUNCTION = 60

FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "pickle.load": "runs code from the file",
    "pickle.loads": "runs code from the bytes",
    "pickle.Unpickler": "runs code from the file",
    "marshal.loads": "runs code from the bytes",
    "shelve.open": "runs code from the file",
    "yaml.load": "builds objects from text; use yaml.safe_load",
    "yaml.unsafe_load": "runs code from text; use yaml.safe_load",
    "yaml.full_load": "builds objects from text; use yaml.safe_load",
    "hydra.utils.instantiate": "calls whatever a config names",
    "torch.distributed.broadcast_object_list": "unpickles what another process sent; send JSON as a byte tensor",
    "torch.distributed.all_gather_object": "unpickles what another process sent; send JSON as a byte tensor",
    "torch.distributed.gather_object": "unpickles what another process sent; send JSON as a byte tensor",
    "torch.distributed.scatter_object_list": "unpickles what another process sent; send JSON as a byte tensor",
}
FORBIDDEN_KEYWORDS = {"shell": "runs a shell", "allow_pickle": "runs code from the file", "trust_remote_code": "runs code from the model"}
"""Keywords that may not be given as anything but False, in any call."""


def floor_of(module: str, floors: Sequence[Sequence[str]] = FLOORS) -> int | None:
    """The floor on which a module lives, 0 at the bottom; None where the table does not know it."""
    for floor, names in enumerate(floors):
        if any(module == name or (name != "trainer" and module.startswith(f"{name}.")) for name in names):
            return floor
    return None


def direction_problems(sources: Sequence[Source]) -> Iterator[str]:
    """Imports that go up, those inside functions too, and modules that the table of floors does not know."""
    modules = {source.module for source in sources}
    for source in sources:
        floor = floor_of(source.module)
        if floor is None:
            yield f"{source.path} stands on no floor: add {source.module} to FLOORS, above what it imports and below what imports it."
            continue
        for found in imports_of(source, modules):
            target = floor_of(found.target)
            if found.when == "typing" and source.module in MAY_NAME_TYPES_ABOVE:
                continue
            if target is not None and target > floor:
                yield f"{source.path}:{found.line} imports {found.target}, which lives above it."


def circle_problems(sources: Sequence[Source]) -> Iterator[str]:
    """A circle of imports that run when modules load."""
    modules = {source.module for source in sources}
    graph = {source.module: {i.target for i in imports_of(source, modules) if i.when == "module"} for source in sources}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"Imports run in a circle: {' <- '.join(error.args[1])}."


def size_problems(sources: Sequence[Source]) -> Iterator[str]:
    """Files and functions that are too long to read in one go, and files whose name says nothing."""
    for source in sources:
        limit = MAX_FILE_OF.get(source.path, MAX_FILE)
        if source.num_lines > limit:
            yield f"{source.path} has {source.num_lines} lines; at most {limit}."
        if source.module.rpartition(".")[2] in {"utils", "util", "helpers", "misc"}:
            yield f"{source.path}: name the file after what it holds."
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    yield f"{source.path}:{node.lineno} {node.name} has {lines} lines; at most {MAX_FUNCTION}."


def unsafe_call_problems(sources: Sequence[Source]) -> Iterator[str]:
    """Calls that let a file, a config or a peer run code."""
    for source in sources:
        names = _imported_names(source.tree)
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                reason = _unsafe(node, names)
                if reason:
                    yield f"{source.path}:{node.lineno} {ast.unparse(node.func)} {reason}."


def _unsafe(call: ast.Call, names: Mapping[str, str]) -> str | None:
    """Why a call is forbidden, or None."""
    head, dot, rest = ast.unparse(call.func).partition(".")
    name = names.get(head, head) + dot + rest
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name == "torch.load" and not _is(keywords.get("weights_only"), True):
        return "runs code from the file without weights_only=True"
    for keyword, reason in FORBIDDEN_KEYWORDS.items():
        if keyword in keywords and not _is(keywords[keyword], False):
            return f"with {keyword}= {reason}"
    return FORBIDDEN_CALLS.get(name)


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """Local name to full dotted name, so that ``from pickle import load as read`` is seen through."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names
