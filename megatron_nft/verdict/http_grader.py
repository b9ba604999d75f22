"""A verifier behind a URL, as an example that works: answers are sent in batches, as JSON, and scores come back.

    verdict.modes = {"my/source" = "megatron_nft.verdict.http_grader:grade"}
    verdict.batches = {"megatron_nft.verdict.http_grader:grade" = 16}

The URL is in MEGATRON_NFT_VERIFIER, in the environment of the driver. It is sent a list of {"prompt", "answer",
"ground_truth", "extra_info"} and returns a list of scores from 0 to 1, as long. What fails is sent again, a few times
within verdict.deadline_s; what fails all the same is an "error" of each answer in the batch, which is no wrong answer.
"""

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

URL = "MEGATRON_NFT_VERIFIER"
ATTEMPTS = 3
TIMEOUT_S = 4.0
"""All attempts together: below verdict.deadline_s, so that the message says what is wrong."""
FIRST_WAIT_S = 0.1
MAX_RESPONSE_BYTES = 1 << 20


class VerifierError(RuntimeError):
    """The verifier gave no scores. The message says why."""


def grade(
    prompt: list[str], answer: list[str], ground_truth: list[str], extra_info: list[dict[str, Any]]
) -> list[float]:
    """The scores of a batch.

    Raises:
        VerifierError: no URL, no answer after ATTEMPTS, or none that is a list of scores.
    """
    url = os.environ.get(URL, "")
    if not url.startswith(("http://", "https://")):
        raise VerifierError(f"{URL} is {url!r}; set it to the verifier's http URL")
    keys = ("prompt", "answer", "ground_truth", "extra_info")
    body = json.dumps(
        [dict(zip(keys, item, strict=True)) for item in zip(prompt, answer, ground_truth, extra_info, strict=True)]
    )
    scores = _post(url, body.encode())
    if not isinstance(scores, list) or len(scores) != len(answer):
        raise VerifierError(f"{url} returned {str(scores)[:60]!r}, not a list of {len(answer)} scores")
    return scores


def _post(url: str, body: bytes) -> Any:
    until = time.monotonic() + TIMEOUT_S
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    wait_s = FIRST_WAIT_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(request, timeout=max(0.1, until - time.monotonic())) as response:
                return json.loads(response.read(MAX_RESPONSE_BYTES))
        except (OSError, ValueError) as error:
            refused = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code != 429
            if refused or attempt == ATTEMPTS or time.monotonic() + wait_s > until:
                raise VerifierError(f"{url}: {type(error).__name__}: {error} (attempt {attempt})") from None
            time.sleep(wait_s)
            wait_s *= 2
    raise AssertionError
