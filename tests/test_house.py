"""The rules of the house, each a walk over the syntax trees; and each rule is shown to catch what it forbids."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmldm import config, targets

ROOT = Path(__file__).resolve().parent.parent
FILES = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in sorted((ROOT / "mmldm").rglob("*.py"))}
TOOLS = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in sorted((ROOT / "tools").rglob("*.py"))}

# ---------------------------------------------------------------- who may import whom

GROUND = {"interfaces", "keyed", "piecewise", "records", "windows"}
MATHS = {"diffusion", "nn", "media"}
BODIES = {"codec", "conditioner", "denoiser"}
USERS = {"data", "training", "evaluation"}
TOP = {"config", "asked", "given", "held", "paste", "pipeline", "settings", "store", "targets", "trained"}
LAYERS = {
    "interfaces": {"piecewise", "records"},
    "piecewise": {"records", "windows"},
    "windows": {"records"},
    "keyed": set(),
    "records": set(),
    **{name: GROUND for name in MATHS},
    "model": GROUND | {"diffusion"},
    "testing": GROUND | {"model"},
    **{name: GROUND | MATHS | {"model"} for name in BODIES},
    **{name: GROUND | MATHS | {"model"} | BODIES for name in USERS},
    **{name: GROUND | MATHS | {"model"} | BODIES | USERS | TOP for name in TOP},
    "commands": GROUND | MATHS | {"model", "testing"} | BODIES | USERS | TOP,
    "__init__": {"pipeline"},
}
CORE = (
    "mmldm/interfaces.py",
    "mmldm/records.py",
    "mmldm/model.py",
    "mmldm/diffusion/",
    "mmldm/nn/",
    "mmldm/denoiser/",
    "mmldm/training/",
)
MODALITIES = {"audio", "video", "image", "mel"}


def place(path: str) -> str:
    """mmldm/codec/mel.py -> codec; mmldm/testing/codec.py -> testing."""
    name = path.split("/")[1].removesuffix(".py")
    return "testing" if name.startswith("testing") else name


def imported(path: str, tree: ast.AST) -> set[str]:
    """Full names of every module or object imported, relative imports included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.split("/")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            names |= {f"{base}.{a.name}" for a in node.names}
    return names


def layers(path, tree):
    allowed = LAYERS.get(place(path))
    if allowed is None:
        return [f"{place(path)} has no layer"]
    own = {n.split(".")[1] for n in imported(path, tree) if n.startswith("mmldm.")}
    own = {"testing" if n.startswith("testing") else n for n in own if n != "__version__"}
    return [f"imports mmldm.{name}" for name in sorted(own - allowed - {place(path)})]


def outside_packages(path, tree):
    packages = {n.split(".")[0] for n in imported(path, tree)}
    wrong = []
    if path != "mmldm/config.py" and place(path) != "commands":
        wrong += packages & {"hydra", "omegaconf"}
    if place(path) != "media":
        wrong += packages & {"av", "PIL"}
    return [
        f"imports {name}"
        for name in wrong + sorted(packages & {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"})
    ]


# ---------------------------------------------------------------- words, sizes, docstrings


def docstrings(tree) -> set[int]:
    """Constants that are docstrings or bare strings, by id."""
    return {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


def words(name: str) -> set[str]:
    pieces = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {p.lower() for p in pieces}


def modality_words(path, tree):
    if not path.startswith(CORE):
        return []
    free, wrong = docstrings(tree), []
    for node in ast.walk(tree):
        fields = [getattr(node, f, None) for f in ("id", "attr", "arg", "name", "asname", "module")]
        if isinstance(node, ast.Constant) and id(node) not in free:
            fields.append(node.value)
        said = set().union(*(words(f) for f in fields if isinstance(f, str))) & MODALITIES
        wrong += [f"line {getattr(node, 'lineno', '?')}: says {word}" for word in sorted(said)]
    return wrong


def sizes(path, tree, source=None):
    source = FILES.get(path, TOOLS.get(path, "")) if source is None else source
    count, wrong = len(source.splitlines()), []
    if count > 300:
        wrong.append(f"{count} lines")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60:
            wrong.append(f"{node.name} has {node.end_lineno - node.lineno + 1} lines")
    return wrong


def documented(path, tree):
    if path.endswith("__init__.py") and not tree.body:
        return []
    wrong = [] if ast.get_docstring(tree) else ["the file has no docstring"]
    for node in tree.body:
        public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        command = place(path) == "commands" and getattr(node, "name", "") == "main"  # told by the file's own docstring
        if public and not command and not ast.get_docstring(node):
            wrong.append(f"{node.name} has no docstring")
    return wrong


# ---------------------------------------------------------------- randomness, code that could run or fail silently

DRAWS = {"randn", "rand", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
LIKE = {"randn_like", "rand_like", "randint_like"}
IN_PLACE = {"normal_", "uniform_", "bernoulli_", "random_", "exponential_", "cauchy_", "log_normal_", "geometric_"}
HIDDEN = {"gumbel_softmax", "rrelu", "RandomSampler", "random_split"}
SEEDS = {"manual_seed", "manual_seed_all", "seed", "set_rng_state"}
INITIALISERS = {"__init__", "reset_parameters"}


def dotted(node) -> str:
    """torch.nn.functional.dropout of a chain of attributes, "" where it begins with something else than a name."""
    if isinstance(node, ast.Name):
        return node.id
    base = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{base}.{node.attr}" if base else ""


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keywords(call) -> dict:
    return {k.arg: k.value for k in call.keywords}


def is_value(node, value) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def randomness(path, tree):
    """Numbers are drawn through a generator that the caller gives, or mmldm.keyed; weights are initialised in constructors."""
    exempt = set()
    for node in ast.walk(tree):
        starts = isinstance(node, ast.FunctionDef) and (node.name in INITIALISERS or node.name.startswith(("init_", "_init")))
        if starts or (isinstance(node, ast.Call) and dotted(node.func).endswith("Parameter")):
            exempt |= {id(n) for n in ast.walk(node)}
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__hash__":
            exempt |= {id(n) for n in ast.walk(node)}
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "random", "numpy.random"):
            allowed = {"Random", "default_rng", "Generator"}
            names = {a.name for a in node.names} & (DRAWS | LIKE) if node.module == "torch" else {a.name for a in node.names}
            wrong += [f"line {node.lineno}: imports {name}" for name in sorted(names - allowed)]
    for call in calls(tree):
        name = dotted(call.func)
        last = call.func.attr if isinstance(call.func, ast.Attribute) else name
        library = name.rpartition(".")[0]
        given = keywords(call)
        keyed = "generator" in given
        drawn = (library == "torch" and last in DRAWS | LIKE and not keyed) or (
            last in IN_PLACE and not keyed and "init" not in library
        )
        hidden = not keyed and (last in HIDDEN or is_value(given.get("shuffle"), True))
        numbers = library in ("np.random", "numpy.random", "random") and not (
            last in ("default_rng", "Random", "Generator") and call.args
        )
        seeded = library.startswith("torch") and last in SEEDS and library != "torch.Generator"
        salted = name == "hash"  # of a string: another in every process
        if ((drawn or salted) and id(call) not in exempt) or hidden or numbers or seeded:
            wrong.append(f"line {call.lineno}: {name or last} without a generator")
    return wrong


def dropout(path, tree):
    wrong = []
    for node in ast.walk(tree):
        name = dotted(node) if isinstance(node, ast.Attribute) else node.name if isinstance(node, ast.alias) else ""
        if re.search(r"(^|\.)(Feature)?(Alpha)?Dropout([123]d)?$", name) or re.search(
            r"(^F|functional|torch)\.\w*dropout\w*$", name
        ):
            wrong.append(f"line {node.lineno}: {name}")
    for call in calls(tree):
        wrong += [
            f"line {call.lineno}: dropout_p" for k, v in keywords(call).items() if k == "dropout_p" and not is_value(v, 0.0)
        ]
    return wrong


def unsafe(path, tree):
    wrong = []
    for call in calls(tree):
        name, given = dotted(call.func), keywords(call)
        bad = name in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
        bad |= name == "torch.load" and not is_value(given.get("weights_only"), True)
        bad |= name in ("np.load", "numpy.load") and "allow_pickle" in given and not is_value(given["allow_pickle"], False)
        bad |= "trust_remote_code" in given and not is_value(given["trust_remote_code"], False)
        bad |= "shell" in given and is_value(given["shell"], True)
        bad |= name.endswith("load_from_checkpoint")
        if bad:
            wrong.append(f"line {call.lineno}: {name}")
    return wrong


def asserts(path, tree):
    if place(path) == "testing":
        return []
    return [f"line {n.lineno}: assert" for n in ast.walk(tree) if isinstance(n, ast.Assert)]


RULES = [layers, outside_packages, modality_words, sizes, documented, randomness, dropout, unsafe, asserts]


def broken(rule, files):
    return [f"{path}: {fault}" for path, source in files.items() for fault in rule(path, ast.parse(source))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule):
    found = broken(rule, FILES)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("rule", [sizes, dropout, unsafe], ids=lambda rule: rule.__name__)
def test_rule_for_tools(rule):
    found = broken(rule, TOOLS)
    assert not found, "\n" + "\n".join(found)


CAUGHT = [
    (layers, "mmldm/nn/a.py", "from mmldm.media import x"),
    (layers, "mmldm/nn/a.py", "from mmldm import model"),
    (layers, "mmldm/nn/a.py", "from ..codec import mel"),
    (layers, "mmldm/codec/a.py", "import mmldm.denoiser.dit"),
    (layers, "mmldm/model.py", "def f():\n    from mmldm.nn import x"),
    (layers, "mmldm/testing/codec.py", "from mmldm.codec import x"),
    (layers, "mmldm/unknown.py", ""),
    (outside_packages, "mmldm/pipeline.py", "import omegaconf"),
    (outside_packages, "mmldm/codec/a.py", "from PIL import Image"),
    (outside_packages, "mmldm/data/a.py", "import pickle"),
    (modality_words, "mmldm/nn/a.py", "class VideoBlock: pass"),
    (modality_words, "mmldm/model.py", "def f(mel_bins): pass"),
    (modality_words, "mmldm/training/a.py", "x = {'audio': 1}"),
    (modality_words, "mmldm/denoiser/a.py", "x = f'{y} image'"),
    (sizes, "mmldm/a.py", "def f():\n" + "    x = 1\n" * 60),
    (documented, "mmldm/a.py", '"""A file."""\nclass A: pass'),
    (documented, "mmldm/a.py", "x = 1"),
    (randomness, "mmldm/a.py", "torch.randn(3)"),
    (randomness, "mmldm/a.py", "torch.randn_like(x)"),
    (randomness, "mmldm/a.py", "x.normal_()"),
    (randomness, "mmldm/a.py", "f(x).uniform_(0, 1)"),
    (randomness, "mmldm/a.py", "np.random.rand(3)"),
    (randomness, "mmldm/a.py", "np.random.default_rng()"),
    (randomness, "mmldm/a.py", "random.shuffle(x)"),
    (randomness, "mmldm/a.py", "torch.manual_seed(0)"),
    (randomness, "mmldm/a.py", "torch.cuda.manual_seed_all(0)"),
    (randomness, "mmldm/a.py", "from torch import randn"),
    (randomness, "mmldm/a.py", "from random import shuffle"),
    (randomness, "mmldm/a.py", "F.gumbel_softmax(x)"),
    (randomness, "mmldm/a.py", "DataLoader(x, shuffle=True)"),
    (randomness, "mmldm/a.py", "key = hash(name)"),
    (dropout, "mmldm/a.py", "nn.Dropout(0.1)"),
    (dropout, "mmldm/a.py", "from torch.nn import Dropout2d"),
    (dropout, "mmldm/a.py", "F.dropout(x)"),
    (dropout, "mmldm/a.py", "F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)"),
    (unsafe, "mmldm/a.py", "torch.load(f)"),
    (unsafe, "mmldm/a.py", "np.load(f, allow_pickle=True)"),
    (unsafe, "mmldm/a.py", "yaml.load(f, Loader=x)"),
    (unsafe, "mmldm/a.py", "AutoModel.from_pretrained(x, trust_remote_code=True)"),
    (unsafe, "mmldm/a.py", "eval(x)"),
    (asserts, "mmldm/a.py", "assert x"),
]
PASSED = [
    (layers, "mmldm/codec/a.py", "from mmldm import keyed\nfrom mmldm.nn import x\nfrom .b import c"),
    (layers, "mmldm/store.py", "from mmldm import __version__"),
    (modality_words, "mmldm/nn/a.py", '"""An image."""\nimages = 1  # video'),
    (modality_words, "mmldm/codec/a.py", "image = 1"),
    (randomness, "mmldm/a.py", "torch.randn(3, generator=g)\nx.normal_(generator=g)\nnp.random.default_rng(0)"),
    (randomness, "mmldm/a.py", "torch.Generator().manual_seed(0)\nDataLoader(x, shuffle=True, generator=g)\nf.seed(0)"),
    (randomness, "mmldm/a.py", "class A:\n    def __init__(self):\n        self.w = torch.randn(3)\nnn.init.normal_(w)"),
    (dropout, "mmldm/a.py", "x = ConditionSet(dropout=0.1)\ny = self.dropout(x)"),
    (unsafe, "mmldm/a.py", "torch.load(f, weights_only=True)\nmodel.eval()\nnp.load(f)"),
]


@pytest.mark.parametrize("rule, path, source", CAUGHT, ids=range(len(CAUGHT)))
def test_the_rule_catches(rule, path, source):
    options = {"source": source} if rule is sizes else {}
    assert rule(path, ast.parse(source), **options)


@pytest.mark.parametrize("rule, path, source", PASSED, ids=range(len(PASSED)))
def test_the_rule_lets_pass(rule, path, source):
    assert not rule(path, ast.parse(source))


# ---------------------------------------------------------------- the house as a whole


def test_one_place_instantiates():
    where = [
        path
        for path, source in (FILES | TOOLS).items()
        for call in calls(ast.parse(source))
        if isinstance(call.func, ast.Name | ast.Attribute)
        and getattr(call.func, "id", getattr(call.func, "attr", "")) == "instantiate"
    ]
    assert where == ["mmldm/config.py"]


def test_every_folder_is_a_package():
    folders = {p.parent for p in (ROOT / "mmldm").rglob("*.py")}
    assert not [f.relative_to(ROOT).as_posix() for f in folders if not (f / "__init__.py").is_file()]


def tracked() -> list[Path]:
    """Files that are, or would be, in the repository; in an unpacked archive those of the project's folders."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0:
        return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]
    return [p for f in ("mmldm", "conf", "tests", "tools") for p in (ROOT / f).rglob("*") if p.is_file() and p.suffix != ".pyc"]


def test_no_machine_and_no_registry_is_named():
    machine = "|".join(rf"(?<![\w.]){'/'}{name}/" for name in ("work", "root", "tmp", "home", "Users"))
    registry = "|".join(
        [
            "".join(p)
            for p in (
                ("py", r"pi\.org"),
                ("python", "hosted"),
                ("index", "-url"),
                ("find", "-links"),
                (r"download\.", "pytorch"),
            )
        ]
    )
    pattern, wrong = re.compile(f"{machine}|{registry}"), []
    for file in tracked():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        wrong += [
            f"{file.relative_to(ROOT)}:{n}: {line.strip()[:80]}"
            for n, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    assert not wrong, "\n" + "\n".join(wrong)


# ---------------------------------------------------------------- conf/

CONF = ROOT / "conf"
YAML = sorted(p.relative_to(CONF).as_posix() for p in CONF.rglob("*.yaml"))
EXPERIMENTS = sorted(
    p.relative_to(CONF / "experiment").with_suffix("").as_posix() for p in (CONF / "experiment").rglob("*.yaml")
)


def unfilled(node):
    """The file's own values, what other files fill in left open."""
    if isinstance(node, dict):
        return {key: unfilled(value) for key, value in node.items()}
    if isinstance(node, list):
        return [unfilled(value) for value in node]
    return "???" if isinstance(node, str) and "${" in node else node


@pytest.mark.parametrize("name", YAML)
def test_every_file_of_conf_names_what_exists(name):
    node = OmegaConf.to_container(OmegaConf.load(CONF / name))  # its yaml reads 1e-3 as a number
    found = [f for f in targets.faults(unfilled(node or {})) if "needs a value" not in f and "a value is required" not in f]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_passes_the_check(experiment):
    cfg = config.compose([f"experiment={experiment}", "run=a-run"])
    found = [f for f in targets.faults(config.resolved(cfg, missing=True)) if "a value is required" not in f]
    assert not found, "\n" + "\n".join(found)


def test_conf_is_short():
    long = [name for name in YAML if len((CONF / name).read_text(encoding="utf-8").splitlines()) > 40]
    assert YAML and not long
