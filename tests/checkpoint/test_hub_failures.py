"""A push that fails says why and what to do, commits nothing, and never shows the token."""

from __future__ import annotations

import json
import logging
import os
import traceback
from pathlib import Path

import pytest

import aim_adapters as aim
from aim_adapters.checkpoint import hub as hub_module
from aim_adapters.checkpoint.hub import push_to_hub
from aim_adapters.errors import CheckpointError
from aim_adapters.storage.files import CARD_NAME, WEIGHTS_NAME
from tests.backbones.cases import assert_same, snapshot, wake
from tests.checkpoint.test_hub import FILES, REPO, TOKEN
from tests.loopback_hub import LoopbackHub
from tests.tiny import base, trained


def token_is_sent_and_never_shown(hub: LoopbackHub, tmp_path: Path) -> None:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(handler.format(record))  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    logging.getLogger("huggingface_hub").setLevel(logging.DEBUG)
    try:
        push_to_hub(trained(), REPO, token=TOKEN, private=True)
        aim.load_adapters(base(), REPO, token=TOKEN)
        assert {request.headers.get("authorization") for request in hub.requests} == {f"Bearer {TOKEN}"}
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("huggingface_hub").setLevel(logging.WARNING)
    assert messages and TOKEN not in "".join(messages)
    hub.faults["POST commit/main"] = "403"  # an answer that quotes the request
    with pytest.raises(CheckpointError, match="the token may not write there") as caught:
        push_to_hub(wake(trained()), REPO, token=TOKEN)
    assert TOKEN not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    kept = [path for path in Path(os.environ["HF_HOME"]).rglob("*") if path.is_file()]
    assert kept and not any(TOKEN.encode() in path.read_bytes() for path in kept)
    assert not any(TOKEN.encode() in content for content in hub.repos[REPO].files().values())
    aim.load_adapters(base(), REPO, local_files_only=True)


def failed_push_commits_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    model = trained()
    before = snapshot(model)
    cases = [("repos/create", "500"), ("repos/create", "hang up"), ("validate-yaml", "500"), ("validate-yaml", "drop")]
    cases += [(step, kind) for step in ("preupload/main", "commit/main") for kind in ("500", "403", "hang up", "drop")]
    for step, kind in cases:
        hub.reset()
        repo = hub.add(REPO)
        hub.faults[f"POST {step}"] = kind
        lost = (step, kind) in (("commit/main", "drop"), ("commit/main", "hang up"), ("commit/main", "500"))
        with pytest.raises(
            CheckpointError, match=r"whether the commit was made$" if lost else f"cannot push to {REPO}"
        ):
            push_to_hub(model, REPO)
        assert_same(before, snapshot(model))
        # an answer that is lost on its way back leaves the whole commit
        whole = (step, kind) == ("commit/main", "drop")
        assert set(repo.files()) == FILES if whole else repo.files() == {".gitattributes": b""}


def junk_is_an_error_of_ours(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(hub_module, "_gmacs", lambda *arguments: None)  # which takes most of the time
        push_and_get_junk(hub)


def push_and_get_junk(hub: LoopbackHub) -> None:
    model = trained()
    junk = [
        "<html>Welcome to the hotel</html>", "", "[]", "{}", "null", "7", '"x"', "[" * 2000, "\0", '{"url": 5}',
        '{"url": "https://elsewhere/them/theirs"}', '{"sha": "../../x", "siblings": []}',
        '{"siblings": [{"rfilename": {}}], "sha": 4}', '{"files": 1}', '{"files": [{"path": 1}]}',
        '{"commitOid": 1, "commitUrl": "x"}', json.dumps({"id": REPO, "sha": "0" * 40}),
    ]  # fmt: skip
    for step in ("POST create", f"GET {REPO.partition('/')[2]}", "POST validate-yaml", "POST preupload/main"):
        for answer in (*(f"answer {text}" for text in junk), "redirect", "401", "404", "409", "413", "418"):
            if step == "POST validate-yaml" and not answer.isdigit() and answer != "redirect":
                continue  # its answer is not read
            if step == "POST create" and answer in ("401", "409"):
                continue  # it may be there, and is
            hub.reset()
            repo = hub.add(REPO)
            hub.faults[step] = answer
            with pytest.raises(CheckpointError, match=f"cannot push to {REPO} ") as caught:
                push_to_hub(model, REPO, token=TOKEN)
            assert TOKEN not in "".join(traceback.format_exception(caught.value))
            assert len(repo.commits) == 1, (step, answer)
    for answer in junk:
        hub.reset()
        hub.add(REPO)
        hub.faults["POST commit/main"] = f"answer {answer}"
        with pytest.raises(CheckpointError, match=r"cannot push.*look at its page whether the commit was made"):
            push_to_hub(model, REPO)


def push_that_cannot_reach_the_hub_says_what_to_do(hub: LoopbackHub, tmp_path: Path) -> None:
    from huggingface_hub import constants

    cases = [
        ("HF_HUB_OFFLINE", True, "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it, or use save_adapters"),
        ("ENDPOINT", "http://127.0.0.1:9", "the Hub could not be reached, or hung up .*check the network"),
        ("ENDPOINT", "http://nowhere.invalid", "the Hub could not be reached, or hung up .*check the network"),
        ("ENDPOINT", "nonsense", "the Hub "),
    ]
    for name, value, expected in cases:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(constants, name, value)
            match = rf"^cannot push to {REPO} \(making the repository\): {expected}.*; nothing was committed$"
            with pytest.raises(CheckpointError, match=match):
                push_to_hub(trained(), REPO)
    with pytest.raises(CheckpointError, match=r"no token was found; log in with `hf auth login`, or pass token="):
        push_to_hub(trained(), REPO, token=True)
    assert not hub.requests


def branch_that_moves_meanwhile_stops_the_push(hub: LoopbackHub, tmp_path: Path) -> None:
    repo = hub.add(REPO, {CARD_NAME: b"before"})
    hub.before["POST validate-yaml"] = lambda: repo.commit({CARD_NAME: b"meanwhile"})
    with pytest.raises(CheckpointError, match=r"the branch has changed meanwhile; push again .* nothing was committed"):
        push_to_hub(trained(), REPO)
    assert repo.files()[CARD_NAME] == b"meanwhile" and WEIGHTS_NAME not in repo.files()
    push_to_hub(trained(), REPO)
    assert b"meanwhile" in repo.files()[CARD_NAME] and WEIGHTS_NAME in repo.files()


SCENARIOS = [
    token_is_sent_and_never_shown,
    failed_push_commits_nothing,
    junk_is_an_error_of_ours,
    push_that_cannot_reach_the_hub_says_what_to_do,
    branch_that_moves_meanwhile_stops_the_push,
]


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_on_the_hub(name: str, on_the_hub: dict[str, str]) -> None:
    assert not on_the_hub[name], on_the_hub[name]
