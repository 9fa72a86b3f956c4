"""A web server for a classifier folder, with a REST interface and a page: the extra `serve`.

app              the application: routes, middleware, background tasks
settings         limits and keys
routes, schemas  /v1/classify, /v1/classes, probes, metrics
uploads          photos of a request, decoded in threads
batching         photos of several requests in one run of the encoder
live_classifier  the classifier in use, replaced as a whole when it changes
metrics          Prometheus metrics
memory           returns memory that loading a model has freed
main             starts the server process
http/            problem documents, authentication, limits, request log
registry/        follows an alias of the student registry of an enrichment service
static/          the web page
"""
