"""Names that may be a folder or a model on the hub, and the message for those that are neither."""

from __future__ import annotations

from ...guidance.reading import is_folder

ASKED = 5.0  # seconds for the hub to say whether it has a model


def reachable(name: str, token: str | bool | None = None) -> bool:
    """Whether to look for a model on the hub, and not only among downloads.

    A name that looks like a mistyped folder, whose first part is a folder here, is asked for first: without a network,
    downloading would be tried for half a minute. What was downloaded before is found either way.

    Args:
        name: the id, ``owner/name``.
        token: for private models, as in huggingface_hub.
    """
    if not is_folder(name.partition("/")[0]):
        return True
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=ASKED, token=token)
    except HfHubHTTPError as error:
        return not isinstance(error, RepositoryNotFoundError)  # another answer: it may yet be had
    except Exception:  # no network, no proxy, no such name: each library has errors of its own
        return False
    return True


def why(error: BaseException, asked: bool = True) -> str:
    """In a line why a name is no model.

    Args:
        error: of the library that was to load it.
        asked: whether it was to look on the hub.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    chain = _chain(error)
    if any(isinstance(one, HFValidationError) for one in chain):
        return "there is no such folder here, and it is no id of a model on the hub (owner/name)"
    if any(isinstance(one, RepositoryNotFoundError) for one in chain):
        return "there is no such folder here, and no such model on the hub, or it is private: `hf auth login`"
    missing = [one for one in chain if isinstance(one, LocalEntryNotFoundError)]
    if missing or any(
        type(one).__name__ in {"ConnectError", "ConnectTimeout", "OfflineModeIsEnabled"} for one in chain
    ):
        hub = "the hub cannot be reached" if asked else "the hub has no such model, or cannot be reached"
        return f"there is no such folder here, {hub}, and it was not downloaded before"
    if any(isinstance(one, EntryNotFoundError) for one in chain):
        return "the model on the hub has no such file"
    return " ".join((str(error).splitlines() or [""])[0].split())[:200] or type(error).__name__


def _chain(error: BaseException | None) -> list[BaseException]:
    """Iterate over an error and its causes."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
