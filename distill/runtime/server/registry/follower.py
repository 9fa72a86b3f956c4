"""Keeps a server at the version that an alias points at.

After any error, the server keeps serving the current version. A version that could not be loaded is
retried with exponential backoff; the alias itself is checked at each poll.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import Final

import numpy as np
from fastapi.concurrency import run_in_threadpool

from contract import error_line
from distill.errors import ClassifierError, UserError
from distill.runtime.classifier import Classifier
from distill.runtime.manifest import check_folder
from distill.runtime.server.live_classifier import LiveClassifier
from distill.runtime.server.memory import return_freed_memory
from distill.runtime.server.registry.cache import ClassifierCache
from distill.runtime.server.registry.client import RegistryClient, Target

MAX_BACKOFF_S: Final = 300.0

log = logging.getLogger("distill.serve")


class Follower:
    """Polls the alias of `client` every `poll_s` seconds; keeps classifiers in `cache`."""

    def __init__(self, client: RegistryClient, cache: Path, *, poll_s: float, threads: int) -> None:
        self._client, self._poll_s, self._threads = client, poll_s, threads
        self._cache = ClassifierCache(cache, client.student, client.alias)
        self._etag: str | None = None  # of the version that is served
        self._failed: str | None = None  # SHA-256 of a version that could not be loaded
        self._failures, self._retry_at = 0, 0.0

    async def run(self, live: LiveClassifier) -> None:
        """Follow the alias until cancelled. Starts with the last version served, if cached."""
        if (last := self._cache.last()) is not None:
            try:
                await self._load(last, live)
            except UserError as error:
                log.warning("cannot serve %s from the cache: %s", last.name, error)
        try:
            while True:
                await self._poll(live)
                await asyncio.sleep(self._poll_s)
        finally:
            self._client.close()

    async def _poll(self, live: LiveClassifier) -> None:
        try:
            problem = await self._update(live)
        except UserError as error:
            problem = str(error)
        except Exception as error:  # if the task ended, nobody would notice
            log.exception("cannot follow %s@%s", self._client.student, self._client.alias)
            problem = f"internal error, see the server log ({type(error).__name__})"
        if problem is not None and problem != live.problem:
            kept = f"; {live.name} stays in use" if live.classifier is not None else ""
            log.warning("%s%s", problem, kept)
        live.problem = problem

    async def _update(self, live: LiveClassifier) -> str | None:
        """Load the version that the alias points at. Returns its problem, or None.

        Raises:
            UserError: the service does not answer, or the version cannot be loaded.
        """
        resolved = await run_in_threadpool(self._client.resolve, self._etag)
        if resolved is None:
            return None
        target, etag = resolved
        if target.name == live.name and live.classifier is not None:
            self._etag = etag
            return None
        if target.sha256 == self._failed and time.monotonic() < self._retry_at:
            return live.problem
        try:
            await self._load(target, live)
        except UserError as error:
            self._back_off(target)
            raise ClassifierError(f"{target.name} cannot be served: {error}") from None
        self._etag, self._failed = etag, None
        return None

    def _back_off(self, target: Target) -> None:
        self._failures = self._failures + 1 if target.sha256 == self._failed else 0
        self._failed = target.sha256
        self._retry_at = time.monotonic() + min(self._poll_s * 2**self._failures, MAX_BACKOFF_S)

    async def _load(self, target: Target, live: LiveClassifier) -> None:
        classifier = await run_in_threadpool(self._fetch, target)
        live.replace_with(classifier, target.name)
        log.info("serving %s, %s classes", target.name, len(classifier.classes))
        del classifier
        return_freed_memory()  # of the previous version, unless a request still uses it
        await run_in_threadpool(self._cache.keep_only, target)

    def _fetch(self, target: Target) -> Classifier:
        """Download and load a version, and check that it encodes an image.

        Raises:
            UserError: it cannot be downloaded, unpacked, loaded or used.
        """
        folder = self._cache.get(target, lambda file: self._client.download(target, file))
        try:
            check_folder(folder)  # all files: `load` does not check the text encoder
            classifier = Classifier.load(folder, threads=self._threads)
            size = classifier.manifest.preprocessing.image_size
            classifier.image_encoder.encode(np.zeros((1, 3, size, size), np.uint8))
        except Exception as error:
            self._cache.drop(target)
            if isinstance(error, UserError):
                raise
            reason = error_line(error)  # for example from ONNX Runtime
            raise ClassifierError(f"it cannot be loaded ({reason})") from error
        return classifier
