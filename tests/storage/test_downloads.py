"""What the Hub answers and what lies in its cache cannot lead anywhere else; each function below runs in a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aim_adapters.storage.files import CONFIG_NAME, WEIGHTS_NAME
from tests.loopback_hub import LoopbackHub
from tests.storage.test_sources import FILES, LOADED, contents, find, refuse


def misbehavior_is_an_error_and_passes(hub: LoopbackHub, tmp_path: Path) -> None:
    from huggingface_hub import constants

    constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.1
    faults = {
        "HEAD": ("500", "503", "403", "hang up", "no etag"),
        "GET": ("500", "403", "hang up", "drop", "slow", "other length", "other content"),
        "": ("429", "500", "hang up", "other etag"),
    }
    cases = [
        (method, kind, name) for method in faults for kind in faults[method] for name in (CONFIG_NAME, WEIGHTS_NAME)
    ]
    for number, (method, kind, name) in enumerate(cases):
        repo_id = f"me/faulty{number}"
        hub.add(repo_id, FILES)
        hub.faults = {f"{method} {name}": kind}
        refuse(f"{name} of {repo_id}", repo_id)
        hub.faults = {}
        resumed = kind == "other length"  # older versions of the client go on with what came
        assert contents(find(repo_id, force_download=resumed)) == LOADED


def damaged_cache_is_found_and_cleared(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("me/damaged", FILES)
    blob = (find("me/damaged") / WEIGHTS_NAME).resolve()
    blob.write_bytes(b"x" + FILES[WEIGHTS_NAME][1:])
    refuse(f"{WEIGHTS_NAME} of me/damaged is damaged.*try again", "me/damaged", local_files_only=True)
    assert contents(find("me/damaged")) == LOADED


def names_from_the_hub_are_no_paths(hub: LoopbackHub, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    before = set(tmp_path.rglob("*"))
    for number, tag in enumerate(
        [f"{target}/x", f'"{target}/x"', "../../x", "..", ".", "", "a/b", "a\\b", "C:x", "nul"]
    ):
        for kind in ("etag", "linked"):
            for name in (CONFIG_NAME, WEIGHTS_NAME, "config.json"):
                repo_id = f"me/tagged{number}{kind}"
                repo = hub.add(repo_id, FILES)
                hub.faults = {f" {name}": f"{kind} {tag}"}
                if name == "config.json" or (kind, tag) == (
                    "linked",
                    "",
                ):  # it is only counted; the other header counts
                    assert contents(find(repo_id)) == LOADED
                else:
                    refuse("ETag that is no digest|did not answer as it should", repo_id)
                hub.faults = {f" {name}": f"commit {tag}"}  # also where the repository has no such file
                repo.commits[repo.branches["main"]].pop(CONFIG_NAME, None)
                if name == CONFIG_NAME and tag:
                    refuse("the Hub answered with what is no commit", repo_id)
    assert set(tmp_path.rglob("*")) == before
    blobs = [path for path in Path(os.environ["HF_HOME"]).rglob("*") if path.parent.name == "blobs"]
    assert blobs and all(len(path.name) in (40, 64) for path in blobs)


def another_commit_than_was_asked_for_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    repo = hub.add("me/switched", FILES)
    first = repo.branches["main"]
    second = repo.commit({CONFIG_NAME: b"{}", WEIGHTS_NAME: b"other"})
    hub.faults = {f" {WEIGHTS_NAME}": f"commit {first}"}
    refuse(
        f"cannot fetch {WEIGHTS_NAME} of me/switched at {second}: the Hub answered with commit {first}", "me/switched"
    )
    hub.faults = {f" {CONFIG_NAME}": f"commit {second}"}
    refuse(f"at {first}: the Hub answered with commit {second}", "me/switched", revision=first)
    hub.faults = {}
    assert contents(find("me/switched", revision=first)) == LOADED


def links_out_of_the_cache_are_neither_followed_nor_removed(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("me/linked", FILES)
    pointer = find("me/linked") / WEIGHTS_NAME
    blob = pointer.resolve()
    content = blob.read_bytes()
    precious = tmp_path / blob.name
    precious.write_bytes(b"precious")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target in (precious, pipe, Path("/dev/zero"), Path(blob.name).absolute().parent):
        for link in (blob, pointer):
            link.unlink()
            link.symlink_to(target)
            refuse("which is no file of the cache; remove", "me/linked", local_files_only=True)
            assert link.readlink() == target
            link.unlink()
            blob.write_bytes(content)
            if not pointer.is_symlink():
                pointer.symlink_to(os.path.relpath(blob, pointer.parent))
            assert contents(find("me/linked", local_files_only=True)) == LOADED
    os.mkfifo(blob.with_name("pipe"))
    pointer.unlink()
    pointer.symlink_to(os.path.relpath(blob.with_name("pipe"), pointer.parent))
    refuse("which is no file of the cache", "me/linked", local_files_only=True)
    assert precious.read_bytes() == b"precious"


def blobs_may_be_shared_by_repositories(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("me/shared", FILES)
    blob = (find("me/shared", cache_dir=tmp_path) / WEIGHTS_NAME).resolve()
    shared = tmp_path / "blobs" / "0a" / "0a1b"
    shared.parent.mkdir(parents=True)
    blob.replace(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert contents(find("me/shared", cache_dir=tmp_path)) == LOADED
    shared.write_bytes(b"damaged")
    refuse("is damaged.*taken out of the cache", "me/shared", cache_dir=tmp_path, local_files_only=True)
    assert not shared.exists() and contents(find("me/shared", cache_dir=tmp_path)) == LOADED


def mirrors_may_have_tags_of_their_own(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add("me/mirrored", FILES)
    hub.faults[" " + WEIGHTS_NAME] = "mirror etag"
    assert contents(find("me/mirrored")) == LOADED


SCENARIOS = [
    misbehavior_is_an_error_and_passes,
    damaged_cache_is_found_and_cleared,
    names_from_the_hub_are_no_paths,
    another_commit_than_was_asked_for_is_refused,
    links_out_of_the_cache_are_neither_followed_nor_removed,
    blobs_may_be_shared_by_repositories,
    mirrors_may_have_tags_of_their_own,
]


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_on_the_hub(name: str, on_the_hub: dict[str, str]) -> None:
    assert not on_the_hub[name], on_the_hub[name]
