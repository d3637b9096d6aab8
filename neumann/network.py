"""Whether a server answers, asked once before a library that would try for minutes."""

from __future__ import annotations

import contextlib
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

ANSWER_S = 10.0
DECORATION = re.compile(r"^(?:<urlopen error )?(?:\[Errno -?\d+\] )?(.*?)\.?>?$", re.DOTALL)


def why_unreachable(address: str, seconds: float = ANSWER_S) -> str | None:
    """Return why nothing answers at ``address`` within ``seconds``, and None where anything does, even a refusal.

    The surroundings' proxies are used, as by the libraries that ask afterwards.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{urllib.parse.urlsplit(address).netloc or address} cannot be reached: {reason_of(error)}"


def reason_of(error: BaseException) -> str:
    """Return the last line of what a download has raised, without an error's number."""
    said = ([line for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]
    return DECORATION.sub(r"\1", said)


@contextlib.contextmanager
def hub_that_answers() -> Iterator[str | None]:
    """Keep the Hugging Face Hub's client from trying, within the block, to reach a server that does not answer.

    It then takes what its cache has. Yields why the server cannot be reached, None where it answers.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    why = None if before else why_unreachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = before or why is not None
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE = before
