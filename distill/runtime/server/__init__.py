"""A classifier folder behind REST and a page: the extra `serve`.

app              the application: routes, middleware, background tasks
settings         limits and keys
routes, schemas  /v1/classify, /v1/classes, probes, metrics
photos           photos of a request, decoded in threads
batching         photos of several requests in one run of the encoder
live_classifier  the classifier that answers, replaced as a whole when it changes
metrics          Prometheus metrics
memory           memory that loading a model leaves behind
main             the process
http/            problem documents, keys, limits, log
registry/        follows an alias of the student registry of an enrichment service
static/          the page
"""
