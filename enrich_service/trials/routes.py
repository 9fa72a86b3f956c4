"""Trials over REST: a prompt that is not saved, and two versions side by side."""

from typing import Annotated

from fastapi import APIRouter, Query

from enrich_service.core.dependencies import ReadSession, SettingsDep
from enrich_service.core.problems import problems
from enrich_service.releases.service import parse_source
from enrich_service.runs.routes import EnricherDep
from enrich_service.trials import comparison, playground
from enrich_service.trials.schemas import Comparison, Trial, TrialRequest

router = APIRouter(prefix="/v1", tags=["trials"])


@router.post("/playground", summary="Try a prompt", responses=problems(404))
async def try_prompt(body: TrialRequest, enricher: EnricherDep) -> Trial:
    """Ask a prompt that is not saved about up to 10 labels, beside a version that is.

    Its answers are stored nowhere, and a bad one is shown with what is wrong with it. The saved
    version answers as for /v1/describe: stored answers cost nothing, new ones are stored.
    To keep the prompt, POST the same content as a version, with a message.
    """
    return await playground.try_prompt(enricher, body)


@router.get(
    "/label-sets/{name}/comparison",
    summary="Compare prompts or models",
    responses=problems(404, 409),
)
def compare_versions(
    name: str,
    session: ReadSession,
    settings: SettingsDep,
    a: Annotated[str, Query(description="PROMPT@VERSION or PROMPT@ALIAS")],
    b: Annotated[str, Query(description="PROMPT@VERSION or PROMPT@ALIAS")],
    model_a: Annotated[str | None, Query(description="Only what this model answered")] = None,
    model_b: Annotated[str | None, Query(description="Only what this model answered")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> Comparison:
    """Set two versions, or two models, side by side over a label set, from what is stored.

    Texts, lengths, what the validators refused, tokens and cost, and how far apart the texts lay
    where a training job has measured it. Nothing is asked.
    """
    return comparison.compare(
        session,
        name,
        parse_source(a, model_a),
        parse_source(b, model_b),
        settings.artifact_dir,
        limit=limit,
        offset=offset,
    )
