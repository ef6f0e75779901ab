"""The command line. Thin: torch is imported only when a command runs."""

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any, NoReturn

import tyro

from memoryless import __version__
from memoryless.cli import answer, files
from memoryless.cli.atlas import Atlas
from memoryless.cli.audit import Audit
from memoryless.cli.betas import Betas
from memoryless.cli.check import Check
from memoryless.cli.compare import Compare
from memoryless.cli.derive import Derive
from memoryless.cli.kernel import Kernel
from memoryless.cli.map import Map
from memoryless.cli.plan import Plan
from memoryless.cli.report import Report
from memoryless.cli.reproduce import Reproduce
from memoryless.cli.study import Study
from memoryless.cli.sweep import Sweep
from memoryless.cli.verify import Verify
from memoryless.cli.watch import Watch
from memoryless.errors import BadInput, users_line

COMMANDS = {
    "audit": Audit,
    "check": Check,
    "compare": Compare,
    "betas": Betas,
    "map": Map,
    "derive": Derive,
    "verify": Verify,
    "kernel": Kernel,
    "watch": Watch,
    "report": Report,
    "atlas": Atlas,
    "reproduce": Reproduce,
    "study": Study,
    "sweep": Sweep,
    "plan": Plan,
}

DESCRIPTION = """What an optimizer's memory does to the loss: measured, predicted, and whether the prediction holds.

Examples:
  memoryless audit
  memoryless check train.py:setup
  memoryless compare adamw lion "torch.optim.Muon(lr=1e-3)"
  memoryless betas --batch-sizes 8,32,128,full
  memoryless map train.py:setup --checkpoint run.pt --png map.png
  memoryless derive adamw --set eps=0
  memoryless verify adamw
  memoryless kernel torch.optim.AdamW
  memoryless watch run.jsonl
  memoryless report run.jsonl
  memoryless atlas --only Adam Lion
  memoryless reproduce fig1
  memoryless study dial
  memoryless sweep grid.toml
  memoryless plan grid.toml
  memoryless audit --optimizer "sgd(lr=0.1, momentum=0.9)" --steps 300
  memoryless audit train.py:setup --checkpoint run.pt --steps 200 --json > audit.json

Every command takes an optimizer as lion, "adamw(lr=1e-3, betas=(0.9, 0.95))", torch.optim.Adamax, "torch.optim.Muon(lr=1e-3)",
or as module:NAME or script.py:NAME of a class, a memoryless.Method, or a function that makes one. memoryless --version tells
which one this is.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    `errors.BadInput`, and whatever the user's own code raises, is one line on stderr and exit code 2; Ctrl-C is one line and
    130; anything else is a bug and keeps its traceback.

    Args:
        arguments: default those of the process.
    """
    if list(sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        print(f"memoryless {__version__}")
        return
    command = _parsed(arguments)
    files.begin(sys.argv[1:] if arguments is None else arguments)
    sys.path.insert(0, "")  # modules of the user's own, where the command is run
    try:
        with answer.alone(last=arguments is None):
            command.run()
    except BadInput as error:
        _end(2, str(error))
    except KeyboardInterrupt as error:
        _end(130, "; ".join(["interrupted", *getattr(error, "__notes__", ())]))
    except (Exception, SystemExit) as error:
        place = users_line(error)
        if place is None:
            raise
        _end(2, f"{type(error).__name__}: {error} ({place})")


def _parsed(arguments: Sequence[str] | None) -> Any:
    """The command, or the parser's frame of several lines as one line."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="memoryless", description=DESCRIPTION, args=arguments)
    except SystemExit as error:
        if not error.code:  # --help
            raise
        _end(2, re.sub(r"[\u2500-\u257f]|-{8,}", " ", said.getvalue()))


def _end(code: int, line: str) -> NoReturn:
    print(f"memoryless: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
