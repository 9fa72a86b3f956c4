# Debian's PostgreSQL, started as the official image starts its own: for the test of the profile
# where that image is not at hand.
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql
COPY postgres.sh /
CMD ["/postgres.sh"]
