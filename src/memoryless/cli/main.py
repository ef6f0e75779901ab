"""The command line. Thin: torch is imported only when a command runs."""

import sys
from collections.abc import Sequence

import tyro

from memoryless.cli.atlas import Atlas
from memoryless.cli.audit import Audit
from memoryless.cli.betas import Betas
from memoryless.cli.compare import Compare
from memoryless.cli.derive import Derive
from memoryless.cli.kernel import Profile
from memoryless.cli.reproduce import Reproduce
from memoryless.cli.verify import Verify

COMMANDS = {
    "audit": Audit,
    "betas": Betas,
    "compare": Compare,
    "derive": Derive,
    "verify": Verify,
    "profile": Profile,
    "atlas": Atlas,
    "reproduce": Reproduce,
}

DESCRIPTION = """What an optimizer's memory does to the loss: measured, predicted, and whether the prediction holds.

Examples:
  memoryless audit
  memoryless betas --batch-sizes 8,32,128,full
  memoryless compare adamw lion "torch.optim.Muon(lr=1e-3)"
  memoryless derive adamw --set eps=0
  memoryless verify adamw
  memoryless profile torch.optim.AdamW
  memoryless atlas --only Adam Lion
  memoryless reproduce fig1
  memoryless audit --optimizer "sgd(lr=0.1, momentum=0.9)" --steps 300
  memoryless audit train.py:setup --checkpoint run.pt --steps 200 --json > audit.json
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; bad input is one line on stderr and exit code 2.

    Args:
        arguments: default those of the process.
    """
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="memoryless", description=DESCRIPTION, args=arguments)
    try:
        command.run()
    except (ValueError, TypeError, OSError) as error:
        print(f"memoryless: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
