import threading

import httpx


def test_more_writers_than_threads_all_get_through(service):
    """With all threads waiting for the write lock, its holder would find none to finish in."""
    writers, statuses = 80, []
    start = threading.Barrier(writers)

    def write(n):
        with httpx.Client(base_url=service.base_url, timeout=60) as client:
            start.wait()
            for k in range(2):
                body = {"name": f"set {n} {k}", "labels": [{"name": "a"}]}
                statuses.append(client.post("/v1/label-sets", json=body).status_code)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [201] * (2 * writers)
    assert len(service.get("/v1/label-sets?limit=1000").json()) == 2 * writers


def test_what_a_client_was_told_is_there_for_the_next_request(service):
    for n in range(20):
        assert service.post(
            "/v1/label-sets", json={"name": f"told {n}", "labels": [{"name": "a"}]}
        ).is_success
        assert service.get(f"/v1/label-sets/told {n}").status_code == 200
