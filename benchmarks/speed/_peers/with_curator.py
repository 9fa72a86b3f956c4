"""Ask for every label with curator; prints the seconds it took."""

import json
import sys
import time

from bespokelabs import curator


class Describe(curator.LLM):
    """One question a label."""

    return_completions_object = False

    def prompt(self, row: dict) -> str:
        """The question about a row's label."""
        return 'Describe the class {"name": ' + json.dumps(row["label"]) + "} in a description."

    def parse(self, row: dict, response: str) -> dict:
        """The answer as it came."""
        return {"label": row["label"], "text": response}


def main() -> None:
    url, concurrency, *labels = sys.argv[1], int(sys.argv[2]), *json.load(sys.stdin)
    describe = Describe(
        model_name="openai/small",
        backend="litellm",
        backend_params={
            "base_url": url,
            "api_key": "none",
            "max_concurrent_requests": concurrency,
            "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**10,
        },
    )
    began = time.perf_counter()
    answers = describe([{"label": label} for label in labels])
    took = time.perf_counter() - began
    rows = answers.dataset if hasattr(answers, "dataset") else answers
    print(json.dumps({"seconds": took, "answers": len(rows)}))


if __name__ == "__main__":
    main()
