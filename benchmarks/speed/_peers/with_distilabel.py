"""Ask for every label with distilabel; prints the seconds it took."""

import json
import sys
import time

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def main() -> None:
    url, concurrency, *labels = sys.argv[1], int(sys.argv[2]), *json.load(sys.stdin)
    asked = [
        {"instruction": 'Describe the class {"name": ' + json.dumps(label) + "} in a description."}
        for label in labels
    ]
    with Pipeline() as pipeline:
        load = LoadDataFromDicts(data=asked, batch_size=concurrency)
        ask = TextGeneration(
            llm=OpenAILLM(model="small", base_url=url, api_key="none"),
            input_batch_size=concurrency,
        )
        load >> ask
    began = time.perf_counter()
    answers = pipeline.run(use_cache=False)
    took = time.perf_counter() - began
    print(json.dumps({"seconds": took, "answers": len(answers["default"]["train"])}))


if __name__ == "__main__":
    main()
