"""mmldm codec <verb>: what concerns a codec by itself."""

from __future__ import annotations

import importlib
import sys

from mmldm.targets import did_you_mean

VERBS = {
    "test": "run the contract on a codec and say what breaks: mmldm codec test my_lab.MyCodec",
    "import": "make a trained model of other people's weights: mmldm codec import SOURCE --out RUN",
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        table = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
        print("\n".join(["usage: mmldm codec <verb> …", "", *table, "", "mmldm codec <verb> --help tells more."]))
        return 0 if argv else 2
    verb, *rest = argv
    if verb not in VERBS:
        raise ValueError(f"there is no verb {verb!r}{did_you_mean(verb, VERBS)}; choose from {', '.join(VERBS)}")
    return importlib.import_module(f"mmldm.commands.codec_{verb}").main(rest)


if __name__ == "__main__":
    from mmldm.commands.cli import run_command

    sys.exit(run_command(main, sys.argv[1:], "codec"))
