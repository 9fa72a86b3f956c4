"""A run with a language model that fails one call in five, and a service that is killed repeatedly.

10 % of the calls get a 429, 5 % a 500, 2 % of the connections are dropped, 2 % of the replies are
truncated, 1 % never arrive. The service is killed (SIGKILL) at random times and restarted. At the
end every label must have a valid text, and no call may have been made for a label after its reply
was stored; the language-model server counts the calls.

    python -m benchmarks.faults.enrichment_faults [--labels 2000] [--kills 10] [--seed 0]
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

from benchmarks.speed.enrichment_rate import CONCURRENCY, language_model, wait
from demo.stack import BIN, DemoError, Service, started, stop_tidily, wait_for_address

FAULTS = {"429": 0.10, "500": 0.05, "reset": 0.02, "cut": 0.02, "hang": 0.01}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    stop_tidily()
    dice = random.Random(options.seed)
    faults = [part for kind, rate in FAULTS.items() for part in ("--fault", f"{kind}={rate}")]
    serve = [str(BIN / "enrich"), "serve", "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as name,
        language_model("--latency", "0.2", *faults) as url,
    ):
        folder = Path(name)
        settings = {
            "ENRICH_DATA_DIR": str(folder / "data"),
            "OPENAI_BASE_URL": url,
            "ENRICH_LLM_TIMEOUT_SECONDS": "3",
            "ENRICH_RUN_LEASE_SECONDS": "2",
            "ENRICH_LLM_CONCURRENCY": str(CONCURRENCY),
        }
        run = None
        for kills in range(options.kills + 1):
            with started("service", serve, folder, **settings) as process:
                service = Service(process, wait_for_address(process))
                if run is None:
                    labels = [{"name": f"kind {n} of teal"} for n in range(options.labels)]
                    service.post("/v1/label-sets", {"name": "teals", "labels": labels})
                    run = service.post(
                        "/v1/runs", {"label_set": "teals", "concurrency": CONCURRENCY}
                    )
                if kills < options.kills:
                    time.sleep(dice.uniform(0.5, 3.0))
                    process.popen.kill()
                    process.popen.wait()
                else:
                    try:
                        run = wait(service.get, run)
                        if run["state"] == "failed":  # a label that met only faults
                            run = wait(service.get, service.post(f"/v1/runs/{run['id']}/retry", {}))
                        texts: Counter[str] = Counter()
                        before = None
                        while True:
                            page = service.get(
                                "/v1/generations", run_id=run["id"], status="accepted", limit=1000,
                                **({"before": before} if before else {}),
                            )  # fmt: skip
                            texts.update(item["label"] for item in page["items"])
                            before = page["next_before"]
                            if before is None:
                                break
                    except DemoError as error:
                        sys.exit(f"enrichment_faults: {error}")
                service.close()
        with urlopen(f"{url}/counts") as answer:
            counts = json.load(answer)
    assert run is not None
    good = counts["answered"]  # good answers that the server sent, by label
    twice = sum(number - 1 for number in good.values() if number > 1)
    print(f"{options.labels} labels, {options.kills} kills, {sum(counts['calls'].values())} calls")
    print(f"run: {run['state']}; {len(texts)} labels with one valid text each")
    print(f"good answers sent: {sum(good.values())}; sent again after a kill lost them: {twice}")
    if len(texts) != options.labels or set(texts.values()) != {1}:
        sys.exit("enrichment_faults: a label has no text, or more than one")
    if twice > CONCURRENCY * options.kills:  # only what was in flight at a kill may be repeated
        sys.exit("enrichment_faults: more calls were repeated than were in flight at the kills")


if __name__ == "__main__":
    main()
