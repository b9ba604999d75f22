"""Ray: processes on one machine or on many. Its ports are open to whoever reaches them, so it asks for a token.

Ray reads whether it does when it is imported, so this comes first: a run that starts a Ray of its own makes a token
here, which its processes inherit, and nobody else can read. In a job slurm/common.sh has made one, for all nodes; a Ray
that somebody else has started (RAY_ADDRESS) may have one or none, as RAY_AUTH_MODE says.
"""

import os
import secrets
import sys

if not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys() and "ray" not in sys.modules:
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
