"""Checkpoints from the Hugging Face Hub, through its own client and cache."""

from __future__ import annotations

from pathlib import Path

from blockzoo.errors import SourceError

#: the same weights for other frameworks: not what transformers' torch models load
_OTHER_FRAMEWORKS = ("*.msgpack", "*.h5", "*.ot", "*.onnx", "*.onnx_data", "*.tflite", "*.gguf")


def fetch(repo_id: str, revision: str | None = None) -> Path:
    """Download a model repository, or find it in the cache; returns its folder.

    Parameters
    ----------
    repo_id : str
        Such as ``org/name``.
    revision : str, optional
        A branch, tag or commit; the main branch by default.

    Raises
    ------
    SourceError
        Where there is no such repository, it may not be read, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            repo_id, revision=revision, ignore_patterns=list(_OTHER_FRAMEWORKS)
        )
    except HFValidationError as error:
        raise SourceError(f"{repo_id!r} is neither a folder nor a Hub id") from error
    except GatedRepoError as error:
        raise SourceError(
            f"{repo_id} is gated on the Hub", hint="ask for access there, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"there is no folder {repo_id!r} here and no model of that name on the Hub",
            hint="check the name; for a private model `hf auth login` first",
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(f"{repo_id} has no revision {revision!r}") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise SourceError(
            f"there is no folder {repo_id!r} here, and the Hub cannot be reached",
            hint="check the path, or the network and HF_HUB_OFFLINE",
        ) from error
    return Path(str(folder))
