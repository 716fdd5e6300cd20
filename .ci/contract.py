"""Run the contract's own black-box check, with one fault of it mended.

Its check `runs_without_source` forbids `tqdm` and `pickletools` in a process that has loaded a
file. `import torch` (2.13) alone brings both, before deepcomp is imported: `torch.hub` imports tqdm
where it is installed, `torch.package` imports pickletools. So what is checked here is what deepcomp
adds to a bare `import torch`; everything else runs as it is written.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

MENDED = {
    "import sys, torch, deepcomp\n": "import sys, torch; before = set(sys.modules); import deepcomp\n",
    "if x in sys.modules]": "if x in set(sys.modules) - before]",
}


def main(path: str) -> int:
    """Run the check at `path`; returns its exit code."""
    source = Path(path).read_text()
    if all(source.count(old) == 1 for old in MENDED):
        for old, new in MENDED.items():
            source = source.replace(old, new)
    with tempfile.TemporaryDirectory() as folder:
        check = Path(folder) / "check_contract.py"
        check.write_text(source)
        return subprocess.run([sys.executable, str(check)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
