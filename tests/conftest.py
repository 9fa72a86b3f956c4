"""Fixtures that all tests share: the test data beside the project, and a real running service."""

import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

POSTGRES = os.environ.get("ENRICH_TEST_POSTGRES")  # set by tests/on_postgres.sh


IN_CI = bool(os.environ.get("CI"))


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of the tests that `make postgres-test` leaves out."""
    config.addinivalue_line("markers", "sqlite: about SQLite itself, its file or its locks")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """A test that is skipped fails in CI, which must provide what the tests need."""
    report = yield
    return report if hasattr(report, "wasxfail") else fail_if_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """A module that is skipped as a whole fails in CI too."""
    return fail_if_skipped((yield))


def fail_if_skipped(report):
    """With the environment variable CI set, turn a skip into a failure that gives the reason."""
    if IN_CI and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"Nothing may be skipped in CI. {reason}"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos, models and texts; tests that need it are skipped without it."""
    default = Path(__file__).parents[1].parent / "shared"
    folder = Path(os.environ.get("ENRICH_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}: set ENRICH_SHARED")
    return folder


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MiB, so that a full disk is a real one; needs the right to mount."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """What the developer has set must not leak into tests, least of all a real key."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("ENRICH_", "OPENAI_")) and name != "ENRICH_SHARED":
                patch.delenv(name)
        patch.delenv("DATABASE_URL", raising=False)
        patch.delenv("FORCE_COLOR", raising=False)
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # many tests start the same program
        patch.setenv("COLUMNS", "200")
        yield


@pytest.fixture(scope="session", autouse=POSTGRES is not None)
def on_postgres() -> Iterator[Callable[..., str] | None]:
    """Every data folder has a database of its own on the server that ENRICH_TEST_POSTGRES names.

    Of this process, and of those that it starts. Gives a function that makes the database of a
    folder, from that of another folder if one is named; None on SQLite.
    """
    if POSTGRES is None:
        yield None
        return
    import sqlalchemy as sa

    from enrich_service.core.settings import Settings

    server = sa.create_engine(POSTGRES, isolation_level="AUTOCOMMIT")

    def name_of(folder: Path) -> str:
        digest = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()
        return f"enrich_{digest[:16]}"

    def database_of(folder: Path, template: Path | None = None) -> str:
        name, source = name_of(folder), name_of(template) if template else "template1"
        with server.connect() as connection:
            there = sa.text("SELECT 1 FROM pg_database WHERE datname = :name")
            if connection.execute(there, {"name": name}).first() is None:
                connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {source}"))
        return server.url.set(database=name).render_as_string(hide_password=False)

    def url_of(settings: Settings) -> str:
        return settings.database_url or database_of(settings.data_dir)

    class Popen(subprocess.Popen):
        def __init__(self, *args, env=None, **options) -> None:
            env = dict(os.environ if env is None else env)
            if (folder := env.get("ENRICH_DATA_DIR")) and "DATABASE_URL" not in env:
                env["DATABASE_URL"] = database_of(Path(folder))
            super().__init__(*args, env=env, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "sqlalchemy_url", property(url_of))
        patch.setattr(subprocess, "Popen", Popen)
        yield database_of
    server.dispose()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory, on_postgres) -> Callable[[Path], Path]:
    """A function that puts an empty, migrated database into a data folder; gives the folder.

    A database that is there already stays. The migrations run once a session, which saves half a
    second a database; tests of the migrations and of the first start do without.
    """
    from enrich_service.core.settings import Settings
    from enrich_service.core.storage.database import make_engine
    from enrich_service.core.storage.prestart import prestart

    template = tmp_path_factory.mktemp("migrated")
    settings = Settings(data_dir=template)
    engine = make_engine(settings.sqlalchemy_url)
    prestart(engine, settings)
    engine.dispose()  # SQLite then writes its log back into the file

    def copy(folder: Path) -> Path:
        if on_postgres is not None:
            on_postgres(folder, template)
        elif not (folder / "enrich.db").exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copy(template / "enrich.db", folder)  # with its mode, 0600
        return folder

    return copy


@pytest.fixture(scope="session")
def brief_timing() -> Iterator[None]:
    """Exports look at their speed only for a moment. It is told, and nothing depends on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.export.verify.TIMED_SECONDS", 0.02)
        yield


@contextmanager
def running(settings: object) -> Iterator[str]:
    """Run the service for `settings` on a free loopback port; gives its base URL."""
    pytest.importorskip("uvicorn")
    from enrich_service.app import create_app

    with running_app(create_app(settings)) as url:
        yield url


@contextmanager
def running_app(app: object, **options: object) -> Iterator[str]:
    """Run an ASGI application on a free loopback port; gives its base URL.

    `options` are uvicorn's.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="warning",
        timeout_graceful_shutdown=2,
        # As the programs do. By default a server closes an idle connection after 5 s, which is
        # when httpx stops using it: a request sent at that moment is lost.
        timeout_keep_alive=75,
        **options,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    """Debian's Chromium, or that of CHROMIUM, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium: install Debian's package chromium, or set CHROMIUM")
    quiet = (
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    )  # fmt: skip
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=list(quiet))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def start_service(migrated) -> Iterator[Callable[[object], str]]:
    """A function that starts a service for given settings; all stop when the module ends."""
    with ExitStack() as stack:

        def start(settings) -> str:
            if settings.database_url is None:
                migrated(settings.data_dir)
            return stack.enter_context(running(settings))

        yield start


@pytest.fixture(scope="module")
def service(start_service, tmp_path_factory) -> Iterator[httpx.Client]:
    """A client of one running service with an empty database, shared by the tests of a module."""
    from enrich_service.core.settings import Settings

    url = start_service(Settings(data_dir=tmp_path_factory.mktemp("service")))
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client
