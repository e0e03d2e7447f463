"""Checkpoints from the Hugging Face hub. The one place that imports huggingface_hub.

huggingface_hub gives the cache, resumed downloads, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. What it does not do is compare a
finished file with the hash that the hub promises; `verify` does. Proved by tests/formats/test_hub.py against a real server.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minift.errors import UserError
from minift.formats.efficientnet import timm_config
from minift.formats.huggingface import FAMILIES, read_config, shards_of
from minift.pretrained import hash_file

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def fetch(repository: str, revision: str | None = None) -> tuple[Path, str]:
    """Download what a conversion needs of a hub repository, or take it from the cache: (directory, commit)."""
    config = download(repository, "config.json", revision)
    if config is None:
        raise UserError(f"{repository}: the hub's repository has no config.json, so it is no transformers checkpoint")
    commit = config.parent.name
    of_timm = timm_config(config.parent) is not None
    files = () if of_timm else FAMILIES[read_config(config.parent)["model_type"]].files  # another architecture is refused here
    for name in WEIGHTS:
        weights = download(repository, name, commit)
        if weights is not None:
            break
    else:
        raise UserError(f"{repository}: the hub's repository has none of {', '.join(WEIGHTS)}")
    if weights.suffix == ".json":
        for shard in shards_of(weights):
            if download(repository, shard, commit) is None:
                raise UserError(f"{repository}: {weights.name} names {shard}, which the hub's repository does not have")
    for name in files:
        download(repository, name, commit)
    return config.parent, commit


def download(repository: str, name: str, revision: str | None) -> Path | None:
    """One file of a repository, verified; None where the repository does not have it."""
    from huggingface_hub import _CACHED_NO_EXIST, constants, errors, hf_hub_download, try_to_load_from_cache

    try:
        with brief_retries():
            path = Path(hf_hub_download(repository, name, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        if not constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{repository}/{name}: the hub could not be reached ({reason(error)}); run the same command again"
            ) from None
        if try_to_load_from_cache(repository, name, revision=revision) is _CACHED_NO_EXIST:
            return None
        raise UserError(
            f"{repository}/{name}: not in the cache, and HF_HUB_OFFLINE forbids asking the hub; convert once with a network, "
            "or give a directory that holds the checkpoint"
        ) from None
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError:
        raise UserError(f"{repository}: access is granted on the hub's page of the repository; then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{repository}: no directory here, and no repository on the hub (a private one needs HF_TOKEN)") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repository}: the repository has no revision {revision!r}") from None
    except errors.HFValidationError:
        raise UserError(f"{repository}: no directory here, and no hub id (which looks like owner/name)") from None
    except Exception as error:  # whatever the HTTP library of the installed huggingface_hub raises when a connection breaks
        raise UserError(
            f"{repository}/{name}: the download broke off ({reason(error)}); run the same command again to resume it"
        ) from None
    verify(path, f"{repository}/{name}")
    return path


@contextmanager
def brief_retries() -> Iterator[None]:
    """The library logs that it tries again, one line, and before it the whole exception, which is not shown here."""
    logger = logging.getLogger("huggingface_hub.utils._http")

    def is_brief(record: logging.LogRecord) -> bool:
        return "thrown while requesting" not in record.getMessage()

    logger.addFilter(is_brief)
    try:
        yield
    finally:
        logger.removeFilter(is_brief)


def verify(path: Path, what: str) -> None:
    """Compare a cached file with the hash that the hub promised, which is its blob's name in the cache.

    That is the sha256 of a large file (LFS) and git's blob sha1 of a small one. A file that differs is deleted from the cache.
    """
    blob = path.resolve()
    promised, size = blob.name, blob.stat().st_size
    if re.fullmatch("[0-9a-f]{64}", promised):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", promised):
        digest = hashlib.sha1(b"blob %d\0" % size)
    else:  # a file system without symbolic links: the cache keeps no hash
        return
    came = hash_file(blob, digest)
    if came != promised:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise UserError(f"{what}: wrong hash: the hub promises {promised}, the {size:,} bytes that came have {came}; "
                        "deleted from the cache, run the same command again")  # fmt: skip


def reason(error: Exception) -> str:
    """The innermost cause of an exception, in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
