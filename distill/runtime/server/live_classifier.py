"""The classifier that answers requests. It is never changed, but replaced as a whole.

So a request that has taken it reads the same classes to its end, whatever happens meanwhile.
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
    """The `classifier` in use, what it is called, and the reason why there is none or no newer one.

    `problem` is shown by /readyz. `read_only` refuses changes of classes, with that reason.
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
        """The classifier to answer a request with.

        Raises:
            HTTPException: 503, there is none yet.
        """
        if self.classifier is None:
            detail = self.problem or f"{self.name} is being loaded"
            raise HTTPException(503, f"There is no classifier yet: {detail}.", {"Retry-After": "5"})
        return self.classifier

    def replace_with(self, classifier: Classifier, name: str) -> None:
        """Answer all further requests with `classifier`."""
        self.classifier, self.name, self.problem = classifier, name, None

    async def add(self, new: ClassCreate) -> ClassEntry:
        """Add a class, described by its text or by whom the server may ask; saved before it counts.

        Raises:
            HTTPException: classes may not be changed, or there is no classifier yet.
            ClassifierError: the class cannot be added, or not be saved.
            ServiceError: who was asked for a description gives none.
        """
        self._check_writable()
        classifier = self.current()
        classifier.check_name(new.name)  # before anybody is asked
        texts: str | tuple[str, ...] | None = new.text
        if texts is None:
            info = classifier.manifest.text
            texts, _ = await asyncio.gather(
                run_in_threadpool(describe, new.name, info, self._service),
                run_in_threadpool(classifier.prepare_texts),  # in the time that the answer takes
            )
        async with self._changing:
            changed = self.current().copy()
            added = await run_in_threadpool(changed.add, new.name, texts, allow_near=new.allow_near)
            await run_in_threadpool(changed.save)
            self.classifier = changed
        log.info("added the class %r", added.name)
        return added

    async def remove(self, name: str) -> ClassEntry:
        """Remove the class with this name or key; saved before it counts.

        Raises:
            HTTPException: classes may not be changed, or there is no classifier yet.
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
