"""The worker: runs training jobs of the service, which it claims over HTTP, one at a time.

client.py       HTTP requests to the service, with retries
upload.py       uploads of result files in chunks
outbox.py       sends the events that a training writes to a file
event_lines.py  the format of these events
attempt.py      one job under one lease: the training process, its events and its results
main.py         the loop that claims jobs
offers.py       tells the service which data and models this worker has, found by
                data_folders.py (data sets below its data roots) and
                cached_models.py (teachers and students in the Hugging Face cache)

- Training runs as a child process in its own process group, so that it can be killed.
- A thread renews the lease. If the lease is lost, the child is killed and nothing more is sent.
- The training writes its events to a file in the work folder. The worker sends them in order,
  numbered by line, so that an event that is sent twice is stored once. While the service is
  unreachable they stay in the file; if the worker was killed, the next attempt in that folder sends
  them.
- A training whose worker was killed writes its checkpoint and ends.
- The work folder is named after the job, and another attempt resumes from its checkpoint. A lock,
  which the child inherits, prevents two trainings in one folder, even if a worker was killed and
  its child still runs.
- If the service rejects a request about a job, the worker gives up this job and claims the next.
"""
