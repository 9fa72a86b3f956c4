"""The classifier in use. It is immutable and replaced as a whole.

So a request uses the same classes from start to end, even if classes change meanwhile.
"""

import asyncio
import logging

from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from distill.runtime.classifier import Classifier
from distill.runtime.describe import describe
from distill.runtime.manifest import ClassEntry
from distill.runtime.server.schemas import ClassCreate

log = logging.getLogger("distill.serve")


class LiveClassifier:
    """The `classifier` in use and its `name`.

    `problem` is the reason why there is no classifier, or no newer one; /readyz shows it.
    `read_only` is the message with which changes of classes are rejected, None if they are allowed.
    """

    def __init__(
        self,
        classifier: Classifier | None,
        name: str,
        *,
        read_only: str | None = None,
        service: str | None = None,
    ) -> None:
        self.classifier, self.name, self.read_only = classifier, name, read_only
        self.problem: str | None = None
        self._service = service
        self._changing = asyncio.Lock()

    def current(self) -> Classifier:
        """The classifier to use for a request.

        Raises:
            HTTPException: 503, there is none yet.
        """
        if self.classifier is None:
            detail = self.problem or f"{self.name} is being loaded"
            raise HTTPException(503, f"There is no classifier yet: {detail}.", {"Retry-After": "5"})
        return self.classifier

    def replace_with(self, classifier: Classifier, name: str) -> None:
        """Use `classifier` for all further requests."""
        self.classifier, self.name, self.problem = classifier, name, None

    async def add(self, new: ClassCreate) -> ClassEntry:
        """Add a class and save it. Without a text, the service or a language model describes it.

        Raises:
            HTTPException: the server is read-only, or there is no classifier yet.
            ClassifierError: the class cannot be added or saved.
            ServiceError: the service or language model gives no description.
        """
        self._check_writable()
        classifier = self.current()
        classifier.check_name(new.name)  # before a description is requested
        texts: str | tuple[str, ...] | None = new.text
        if texts is None:
            info = classifier.manifest.text
            texts, _ = await asyncio.gather(
                run_in_threadpool(describe, new.name, info, self._service),
                run_in_threadpool(classifier.prepare_texts),  # meanwhile
            )
        async with self._changing:
            changed = self.current().copy()
            added = await run_in_threadpool(changed.add, new.name, texts, allow_near=new.allow_near)
            await run_in_threadpool(changed.save)
            self.classifier = changed
        log.info("added the class %r", added.name)
        return added

    async def remove(self, name: str) -> ClassEntry:
        """Remove the class with this name or key, and save the change.

        Raises:
            HTTPException: the server is read-only, or there is no classifier yet.
            ClassifierError: there is no such class, or the change cannot be saved.
        """
        self._check_writable()
        async with self._changing:
            changed = self.current().copy()
            removed = changed.remove(name)
            await run_in_threadpool(changed.save)
            self.classifier = changed
        log.info("removed the class %r", removed.name)
        return removed

    def _check_writable(self) -> None:
        if self.read_only is not None:
            raise HTTPException(409, self.read_only)
