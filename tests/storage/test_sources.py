"""A checkpoint is found here or fetched from the Hub, whole and from one commit, or a clear error says why not."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from aim_adapters.errors import CheckpointError
from aim_adapters.storage.files import CONFIG_NAME, WEIGHTS_NAME
from aim_adapters.storage.sources import HubOptions, locate, require_repo_id, require_token
from tests.loopback_hub import LoopbackHub

TOKEN = "hf_secret"
FILES = {CONFIG_NAME: b'{"peft_type": "AIM"}', WEIGHTS_NAME: b"weights" * 1000, "config.json": b"{}"}
LOADED = {name: FILES[name] for name in (CONFIG_NAME, WEIGHTS_NAME)}
BAD_NAMES = [
    "", ".", "..", "../x", "a/../b", "a/..", "/a", "a//b", "a/", "a\\b", "..\\x", "C:x", "C:/x", "a\0b", "a\nb", "~\n",
    "a/./b", "//server/share", "a?b", "%2e%2e/..",
]  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "user" / "repo"
    (directory / "last").mkdir(parents=True)
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    return directory


def find(source: Any, **options: Any) -> Path:
    return locate(source, HubOptions(**options))


def refuse(match: str, source: Any, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=match):
        find(source, **options)


# Directories


def test_directory_is_found_by_path_name_and_weights(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(checkpoint) == find(str(checkpoint)) == find(checkpoint / WEIGHTS_NAME) == checkpoint
    assert find(str(checkpoint / WEIGHTS_NAME)) == checkpoint
    assert find(checkpoint, subfolder="last") == find(str(checkpoint), subfolder="last") == checkpoint / "last"
    monkeypatch.chdir(checkpoint)
    assert find(".") == find(WEIGHTS_NAME) == Path()


def test_directory_goes_before_a_repository_of_that_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parents[1])
    assert find("user/repo") == Path("user/repo")


def test_revision_of_a_directory_is_refused(checkpoint: Path) -> None:
    refuse("revision='v1' means nothing", checkpoint, revision="v1")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("", "'' is no file or directory here"),
        ("/nowhere/at/all", "'/nowhere/at/all' is no file or directory here"),
        ("./out", "'./out' is no file or directory here"),
        ("../out", "is no file or directory here"),
        ("~/out", "is no file or directory here"),
        ("out\\run", "is no file or directory here"),
        ("C:\\out", "is no file or directory here"),
        ("a/b/c", "expected a directory, the path of an adapter_model.safetensors, or 'user/repo'"),
        ("user/repo/", "is no file or directory here"),
        ("user/adapter_model.safetensors", "is no file or directory here"),
        (WEIGHTS_NAME, "is no file or directory here"),
        ("user/re\0po", "is no file or directory here"),
        ("x" * 5000, "is no file or directory here"),
        ("user/re po", "is no file or directory here"),
        (Path("user/repo"), "repo does not exist"),
        (Path("x" * 5000), "does not exist"),
    ],
)
def test_what_is_no_checkpoint_is_refused_unasked(
    source: Any, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(match, source)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_other_files_are_refused(checkpoint: Path) -> None:
    refuse("adapter_config.json is not a directory", checkpoint / CONFIG_NAME)
    refuse("adapter_config.json is not a directory", str(checkpoint / CONFIG_NAME))
    refuse("is not a directory", checkpoint / WEIGHTS_NAME, subfolder="last")
    os.mkfifo(checkpoint / "last" / WEIGHTS_NAME)
    refuse("is not a directory", checkpoint / "last" / WEIGHTS_NAME)


def test_forcing_a_download_without_one_is_refused(no_network: None) -> None:
    refuse("local_files_only=True forbids that", "user/repo", local_files_only=True, force_download=True)


@pytest.mark.parametrize("source", [None, 3, b"out", {"a": 1}])
def test_what_is_no_path_is_refused(source: Any) -> None:
    with pytest.raises(TypeError, match="source must be a path or the id of a repository"):
        find(source)


# Names that lead elsewhere


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("what", ["subfolder", "revision"])
def test_name_that_could_lead_elsewhere_is_refused_unasked(
    what: str, name: str, checkpoint: Path, no_network: None
) -> None:
    for source in (checkpoint, "user/repo"):
        refuse(f"{what} must be a relative path of plain names", source, **{what: name})


def test_subfolder_that_is_not_there_is_refused(checkpoint: Path) -> None:
    refuse("holds no folder 'first'", checkpoint, subfolder="first")
    refuse("holds no folder 'config.json'", checkpoint, subfolder="config.json")


def test_link_out_of_the_directory_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (checkpoint / "out").symlink_to(tmp_path / "secret")
    (checkpoint / "up").symlink_to("..")
    (checkpoint / "loop").symlink_to("loop")
    (checkpoint / "in").symlink_to("last")
    refuse("is a link out of", checkpoint, subfolder="out")
    refuse("is a link out of", checkpoint, subfolder="up")
    refuse("holds no folder 'loop'", checkpoint, subfolder="loop")
    assert find(checkpoint, subfolder="in") == checkpoint / "in"


def test_directory_may_be_a_link_itself(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(checkpoint)
    assert find(tmp_path / "link", subfolder="last") == tmp_path / "link" / "last"


@pytest.mark.parametrize("token", ["", " ", "hf_secret\n", "hf secret", "hf_sécret", "hf_\0secret", b"hf_secret", 5])
def test_token_that_no_header_carries_is_refused_unquoted(token: Any, no_network: None) -> None:
    with pytest.raises(CheckpointError, match="the token is empty or holds") as caught:
        find("user/repo", token=token)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"subfolder": "../x"}, "subfolder must be a relative path of plain names"),
        ({"subfolder": 3}, "subfolder must be a relative path of plain names"),
        ({"revision": "a//b"}, "revision must be a relative path of plain names"),
        ({"token": "hf secret"}, "the token is empty or holds"),
        ({"local_files_only": True, "force_download": True}, "local_files_only=True forbids that; pass one"),
    ],
)
def test_options_are_checked_when_asked(options: dict[str, Any], match: str) -> None:
    chosen = HubOptions(**options)
    with pytest.raises(CheckpointError, match=match):
        chosen.validate()


def test_options_of_every_kind_pass_and_never_show_the_token() -> None:
    HubOptions().validate()
    options = HubOptions("refs/pr/1", "runs/last", TOKEN, Path("cache"), local_files_only=True)
    options.validate()
    assert TOKEN not in repr(options)
    assert "refs/pr/1" in repr(options)


def test_plain_tokens_and_ids_pass() -> None:
    for token in (None, True, False, TOKEN):
        require_token(token)
    for repo_id in ("repo", "user/repo", "User-1/re.po_2"):
        require_repo_id(repo_id)


# The Hub: each function below runs in another process


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def files_are_fetched_once(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("me/fetched", FILES)
    directory = find("me/fetched")
    assert contents(directory) == LOADED
    asked = hub.asked("GET /me/fetched")
    assert len(asked) == 2 and all(request.headers["user-agent"].startswith("aim-adapters/") for request in asked)
    hub.requests.clear()
    assert find("me/fetched") == directory
    assert [(request.method, Path(request.path).name) for request in hub.requests] == [("HEAD", CONFIG_NAME)]


def files_come_from_one_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    repo = hub.add("me/moving", FILES)
    hub.before[f" {WEIGHTS_NAME}"] = lambda: repo.commit({WEIGHTS_NAME: b"newer", CONFIG_NAME: b"newer"})
    assert contents(find("me/moving")) == LOADED
    assert len(repo.commits) == 2
    assert contents(find("me/moving"))[WEIGHTS_NAME] == b"newer"


def revisions_are_followed(hub: LoopbackHub, tmp_path: Path) -> None:
    repo = hub.add("me/revised", FILES)
    first = repo.branches["main"]
    for branch in ("main", "v1", "refs/pr/1", "try/this"):
        repo.commit({CONFIG_NAME: b"{}", WEIGHTS_NAME: branch.encode()}, branch=branch)
    for branch in ("main", "v1", "refs/pr/1", "try/this"):
        assert (find("me/revised", revision=branch) / WEIGHTS_NAME).read_bytes() == branch.encode()
    assert contents(find("me/revised", revision=first)) == LOADED


def subfolders_are_followed(hub: LoopbackHub, tmp_path: Path) -> None:
    repo = hub.add("me/nested", {"a/b/" + name: content for name, content in FILES.items()})
    first = repo.branches["main"]
    repo.commit({f"a/b/{WEIGHTS_NAME}": b"newer"})
    directory = find("me/nested", subfolder="a/b", revision=first)
    assert (directory.name, contents(directory)[WEIGHTS_NAME]) == ("b", FILES[WEIGHTS_NAME])
    assert contents(find("me/nested", subfolder="a/b"))[WEIGHTS_NAME] == b"newer"
    refuse(f"holds no {WEIGHTS_NAME}.*do they lie in a subfolder", "me/nested")


def weights_alone_are_enough(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("me/bare", {WEIGHTS_NAME: b"bare"})
    directory = find("me/bare")
    assert contents(directory) == {WEIGHTS_NAME: b"bare"}
    assert find("me/bare", local_files_only=True) == directory


def download_is_counted_where_it_can_be(hub: LoopbackHub, tmp_path: Path) -> None:
    repo = hub.add("me/counted", FILES)
    find("me/counted")
    assert len(hub.asked("HEAD /me/counted/resolve/" + repo.branches["main"] + "/config.json")) == 1
    hub.add("me/uncounted", {name: content for name, content in FILES.items() if name != "config.json"})
    hub.faults[" config.json"] = "403"
    for _ in range(2):
        assert CONFIG_NAME in contents(find("me/uncounted"))
    assert len([request for request in hub.asked("HEAD /me/uncounted") if request.path.endswith("/config.json")]) == 1


def cache_can_be_anywhere(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("me/cached", FILES)
    refuse("not in the cache, and the Hub is not asked", "me/cached", cache_dir=tmp_path, local_files_only=True)
    directory = find("me/cached", cache_dir=str(tmp_path))
    assert directory.is_relative_to(tmp_path)
    hub.repos.clear()
    assert contents(find("me/cached", cache_dir=tmp_path, local_files_only=True)) == LOADED
    refuse("not in the cache", "me/cached", local_files_only=True)


def offline_mode_takes_the_cache(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("me/offline", FILES)
    directory = find("me/offline")
    hub.requests.clear()
    code = """if True:
        from aim_adapters.storage import HubOptions, locate
        print(locate("me/offline", HubOptions()))
        for arguments in ({}, {"force_download": True}):
            try:
                locate("me/other", HubOptions(**arguments))
            except RuntimeError as error:
                print(error)
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    cached, *others = output.stdout.splitlines()
    assert cached == str(directory) and not hub.requests
    assert len(others) == 2 and all("cannot fetch adapter_config.json of me/other" in other for other in others)
    assert all("the Hub is not asked (local_files_only or HF_HUB_OFFLINE)" in other for other in others)


def missing_things_are_named(hub: LoopbackHub, tmp_path: Path) -> None:
    refuse("there is no such repository, or it is private.*hf auth login", "me/none")
    hub.add("me/private", FILES, private=True)
    refuse("there is no such repository, or it is private", "me/private", token=False)
    hub.add("me/gated", FILES, gated=True)
    refuse("the repository is gated; ask for access on its page", "me/gated")
    hub.add("me/full", {"model.safetensors": b"", CONFIG_NAME: b"{}"})
    refuse(f"cannot fetch {WEIGHTS_NAME} of me/full at .*: the repository holds no {WEIGHTS_NAME}", "me/full")
    refuse("of me/full at v9: the repository has no such revision", "me/full", revision="v9")
    for repo_id in ("me/none", "me/private", "me/gated", "me/full"):
        with pytest.raises(CheckpointError, match=f"^there is no directory '{repo_id}' here, and no repo") as caught:
            find(repo_id)
        assert isinstance(caught.value.__cause__, OSError)


def directory_that_is_not_there_is_named(hub: LoopbackHub, tmp_path: Path) -> None:
    said = (
        "^there is no directory '{}' here, and no repository that can be loaded: cannot fetch adapter_config.json of {}"
    )
    for source in ("nowhere", "runs/nowhere"):  # the quickstart leaves an `out`
        refuse(said.format(source, source), source)
        refuse(said.format(source, source) + ".*the Hub is not asked", source, local_files_only=True)
    for fault, match in (("500", "status 500"), ("hang up", "the Hub did not answer as it should")):
        hub.faults[" " + CONFIG_NAME] = fault
        refuse(f"{said.format('runs/out', 'runs/out')}.*{match}", "runs/out")


def download_can_be_forced(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("me/forced", FILES)
    find("me/forced")
    hub.requests.clear()
    assert contents(find("me/forced", force_download=True)) == LOADED
    assert {Path(request.path).name for request in hub.asked("GET /me/forced")} == {CONFIG_NAME, WEIGHTS_NAME}
    hub.repos["me/forced"].gated = True
    refuse("the repository is gated", "me/forced", force_download=True)


def token_is_sent_and_never_shown(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("me/private", FILES, private=True)
    find("me/private", token=TOKEN, cache_dir=tmp_path)
    assert {request.headers["authorization"] for request in hub.requests} == {f"Bearer {TOKEN}"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    for token in (TOKEN, None):  # given, and of the machine
        for fault in ("401", "403", "500"):  # answers that quote the request
            hub.faults[" " + CONFIG_NAME] = fault
            os.environ["HF_TOKEN"] = TOKEN
            with pytest.raises(CheckpointError) as caught:
                find(f"me/quoting-{fault}", token=token)
            del os.environ["HF_TOKEN"]
            assert hub.requests[-1].headers["authorization"] == f"Bearer {TOKEN}"
            assert TOKEN not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)


SCENARIOS = [
    files_are_fetched_once,
    files_come_from_one_commit,
    revisions_are_followed,
    subfolders_are_followed,
    weights_alone_are_enough,
    download_is_counted_where_it_can_be,
    cache_can_be_anywhere,
    offline_mode_takes_the_cache,
    missing_things_are_named,
    directory_that_is_not_there_is_named,
    download_can_be_forced,
    token_is_sent_and_never_shown,
]


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_on_the_hub(name: str, on_the_hub: dict[str, str]) -> None:
    assert not on_the_hub[name], on_the_hub[name]
