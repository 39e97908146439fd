"""Runs scripts one after another, each as `python SCRIPT OPTIONS` would; alone or by torchrun. Importing torch takes longer than any of them.

python -m tests.monitoring.scripts_run '[["docs/examples/train_plain.py", "--steps=3"], ...]'
"""

import json
import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    port = int(os.environ.get("MASTER_PORT", "0"))
    for number, (script, *options) in enumerate(json.loads(sys.argv[1])):
        if number:  # a store of its own for the next process group: torchrun's still has the addresses of the first
            os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port + number)}
        sys.argv[:] = [script, *options]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")
