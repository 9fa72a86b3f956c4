"""Trials over REST: test an unsaved prompt, compare two versions."""

from typing import Annotated

from fastapi import APIRouter, Query

from enrich_service.core.rest.dependencies import ReadSession, SettingsDep
from enrich_service.core.rest.problems import problems
from enrich_service.releases.choose_texts import parse_source
from enrich_service.runs.routes import EnricherDep
from enrich_service.trials import comparison
from enrich_service.trials.schemas import Comparison, Trial, TrialRequest
from enrich_service.trials.try_prompt import try_prompt as run_trial

router = APIRouter(prefix="/v1", tags=["trials"])


@router.post("/playground", summary="Try a prompt", responses=problems(404))
async def try_prompt(body: TrialRequest, enricher: EnricherDep) -> Trial:
    """Test an unsaved prompt on up to 10 labels, next to a saved version.

    Answers to the unsaved prompt are not stored; invalid ones are returned with their problems.
    The saved version works as in /v1/describe: stored answers are reused, new ones are stored.
    To save the prompt, POST the same content as a version with a message.
    """
    return await run_trial(enricher, body)


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
    model_a: Annotated[str | None, Query(description="Filter answers by model")] = None,
    model_b: Annotated[str | None, Query(description="Filter answers by model")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> Comparison:
    """Compare stored answers of two versions or two models for a label set.

    Returns texts, lengths, rejections, tokens, cost, and text similarity where a training job has
    measured it. Makes no language-model calls.
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
