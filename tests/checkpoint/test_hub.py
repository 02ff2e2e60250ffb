"""What is pushed is what is loaded: one commit, a card that is merged, and on any error nothing half done."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import HfApi
from safetensors.torch import load
from timm.models import save_for_hf
from torch import nn
from torch.distributed.fsdp import fully_shard

import aim_adapters as aim
from aim_adapters.checkpoint.card import section_marks
from aim_adapters.checkpoint.hub import push_to_hub
from aim_adapters.errors import CheckpointError, ConfigError, StateError
from aim_adapters.storage.files import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME
from tests.backbones.cases import assert_same, process_group, scramble, snapshot, wake
from tests.loopback_hub import LoopbackHub
from tests.tiny import FRAMES, base, run, trained, wrapped

__all__ = ["process_group"]

REPO = "me/aim-tiny"
TOKEN = "hf_secret"
FILES = {".gitattributes", CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, "config.json"}


def metadata(text: bytes) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", text.decode(), re.DOTALL)
    assert match is not None
    return yaml.safe_load(match.group(1))


# Before the Hub is asked


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"repo_id": "a/b/c"}, CheckpointError, "cannot be the id of a repository"),
        ({"repo_id": "./out"}, CheckpointError, "cannot be the id of a repository"),
        ({"subfolder": "../x"}, CheckpointError, "subfolder must be a relative path"),
        ({"branch": "a..b/../c"}, CheckpointError, "branch must be a relative path"),
        ({"token": "hf_secret\n"}, CheckpointError, "the token is empty or holds"),
        ({"repo_id": Path("a/b")}, CheckpointError, "cannot be the id of a repository"),
        ({"commit_message": ""}, ConfigError, "commit_message must be a line of text, got ''"),
        ({"commit_message": 5}, ConfigError, "commit_message must be a line of text, got 5"),
        ({"labels": ["a"]}, ConfigError, "got 1 labels for a model with 5 classes"),
        ({"frame_stride": 0}, ConfigError, "frame_stride must be an integer >= 1"),
        ({"name": "other"}, ConfigError, "no adapter is named 'other'"),
        ({"metrics": {"accuracy": 1.0}}, ConfigError, "metrics say nothing without the data"),
        ({"metrics": [1.0], "datasets": ["k400"]}, ConfigError, "metrics must be finite numbers by name"),
        ({"metrics": {1: 1.0}, "datasets": ["k400"]}, ConfigError, "metrics must be finite numbers by name"),
        ({"datasets": "k400"}, ConfigError, "datasets must be a list of strings"),
        ({"tags": None}, ConfigError, "tags must be a list of strings, got None"),
        ({"model": base()}, StateError, "is not wrapped"),
    ],
)
def test_wrong_arguments_are_refused_before_the_hub_is_asked(
    arguments: dict[str, Any], error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(HfApi, "create_repo", ask)
    with pytest.raises(error, match=match):
        push_to_hub(**{"model": trained(), "repo_id": REPO, **arguments})


def test_process_that_does_not_write_pushes_nothing(process_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fully_shard(trained())
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert push_to_hub(model, REPO) == ""


# The Hub: each function below runs in another process


def pushed_adapters_load_to_the_bit(hub: LoopbackHub, tmp_path: Path) -> None:
    model = trained("vit_x.in1k")
    before = snapshot(model)
    commit = push_to_hub(model, REPO, labels=list("abcde"), frame_stride=8, base_model_revision="v1")
    assert_same(before, snapshot(model))
    repo = hub.repos[REPO]
    assert list(repo.commits)[1:] == [commit] == [repo.branches["main"]]
    files = repo.files()
    assert set(files) == FILES
    assert json.loads(files["config.json"]) == {"model_type": "aim", "library_name": "aim-adapters"}
    config = json.loads(files[CONFIG_NAME])
    assert config["clip"]["labels"] == list("abcde") and config["clip"]["stride"] == 8
    assert config["base_model_revision"] == "v1"
    state = load(files[WEIGHTS_NAME])
    ours = aim.adapter_state_dict(model)
    assert state.keys() == ours.keys() and all(torch.equal(state[key], ours[key]) for key in ours)
    for fresh in (base("vit_x.in1k"), wrapped("vit_x.in1k")):
        assert not any(aim.load_adapters(fresh, REPO))
        assert torch.equal(run(fresh), run(model))
    assert all(request.headers["user-agent"].startswith("aim-adapters/") for request in hub.requests)


def card_says_what_was_pushed(hub: LoopbackHub, tmp_path: Path) -> None:
    model = trained("vit_x.in1k")
    push_to_hub(model, REPO, license="mit", datasets=["k400"], metrics={"accuracy": 0.5}, tags=["tiny"])
    text = hub.repos[REPO].files()[CARD_NAME]
    fields, count = metadata(text), aim.count_parameters(model)
    assert (fields["library_name"], fields["license"], fields["datasets"]) == ("aim-adapters", "mit", ["k400"])
    assert fields["base_model"] == "timm/vit_x.in1k" and "tiny" in fields["tags"]
    assert fields["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.5}]
    assert f"{count.trainable:,} trained of {count.total:,}" in text.decode()
    assert f"| cost | {aim.count_flops(model).gmacs:.2g} GMACs for one clip |" in text.decode()
    assert f'aim.load_video_model("{REPO}")' in text.decode()


def code_of_the_card_runs_as_written(hub: LoopbackHub, tmp_path: Path) -> None:
    size = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
    image_model = scramble(timm.create_model("vit_tiny_patch16_224", num_classes=5, **size))
    save_for_hf(image_model, str(tmp_path), model_args=size, safe_serialization=True)
    hub.add("me/tiny", {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    model = timm.create_model("hf-hub:me/tiny", pretrained=True).eval()
    wake(aim.wrap_image_model(model, num_frames=FRAMES))
    push_to_hub(model, REPO)
    namespace: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", hub.repos[REPO].files()[CARD_NAME].decode(), re.DOTALL):
        exec(code, namespace)
    assert metadata(hub.repos[REPO].files()[CARD_NAME])["base_model"] == "me/tiny"
    assert torch.equal(namespace["output"], model(namespace["video"]))


def repository_of_ones_own_needs_no_name(hub: LoopbackHub, tmp_path: Path) -> None:
    push_to_hub(trained(), "aim-tiny")
    assert set(hub.repos[REPO].files()) == FILES
    assert f'aim.load_adapters(model, "{REPO}")' in hub.repos[REPO].files()[CARD_NAME].decode()


def readme_of_the_repository_is_added_to(hub: LoopbackHub, tmp_path: Path) -> None:
    readme = b"---\r\nlicense: apache-2.0\r\n# why\r\n---\r\n# Mine\r\n\r\nWords \xe2\x80\xa6\r\n"
    repo = hub.add(REPO, {CARD_NAME: readme, "config.json": b"theirs", "notes.txt": b"theirs"})
    push_to_hub(trained(), REPO)
    files = repo.files()
    assert (files["config.json"], files["notes.txt"]) == (b"theirs", b"theirs")
    text = files[CARD_NAME]
    assert text.startswith(b"---\r\nlicense: apache-2.0\r\n# why\r\n")
    assert readme[readme.index(b"# Mine") :] + b"\r\n<!-- aim-adapters:begin -->" in text
    assert b"\n" not in text.replace(b"\r\n", b"")
    commits = len(repo.commits)
    first = push_to_hub(trained(), REPO)
    assert repo.files()[CARD_NAME] == text and first == repo.branches["main"] and len(repo.commits) == commits + 1


def readme_that_is_no_text_stops_the_push(hub: LoopbackHub, tmp_path: Path) -> None:
    repo = hub.add(REPO, {CARD_NAME: b"\xff\xfe"})
    with pytest.raises(CheckpointError, match=r"README.md of me/aim-tiny is not UTF-8"):
        push_to_hub(trained(), REPO)
    assert len(repo.commits) == 1


def readme_with_broken_metadata_stops_the_push(hub: LoopbackHub, tmp_path: Path) -> None:
    repo = hub.add(REPO, {CARD_NAME: b"---\nlicense: [\n---\n"})
    with (
        pytest.warns(UserWarning, match="left as it is"),
        pytest.raises(CheckpointError, match=r"Invalid metadata in README.* nothing was committed$"),
    ):
        push_to_hub(trained(), REPO)
    assert len(repo.commits) == 1


def privacy_is_asked_for(hub: LoopbackHub, tmp_path: Path) -> None:
    for private in (True, False, None):
        push_to_hub(trained(), f"me/private-{private}", private=private)
        assert hub.repos[f"me/private-{private}"].private is bool(private)
    bodies = [json.loads(request.body) for request in hub.asked("POST /api/repos/create")]
    assert [body.keys() & {"private", "visibility"} != set() for body in bodies] == [True, True, False]


def branches_are_made_and_committed_to(hub: LoopbackHub, tmp_path: Path) -> None:
    main = push_to_hub(trained(), REPO)
    other = trained()
    with torch.no_grad():
        other.aim.temporal_embedding.add_(1)
    for _ in range(2):
        commit = push_to_hub(other, REPO, branch="try/this", commit_message="Try", commit_description="Once more")
    repo = hub.repos[REPO]
    assert (repo.branches["main"], repo.branches["try/this"]) == (main, commit)
    assert 'revision="try/this"' in repo.files(commit)[CARD_NAME].decode()
    header = hub.asked(f"POST /api/models/{REPO}/commit")[-1].lines()[0]["value"]
    assert (header["summary"], header["description"]) == ("Try", "Once more")
    for revision, expected in ((None, trained()), (main, trained()), ("try/this", other), (commit, other)):
        fresh = base()
        aim.load_adapters(fresh, REPO, revision=revision)
        assert torch.equal(run(fresh), run(expected))


def pull_requests_are_opened_and_added_to(hub: LoopbackHub, tmp_path: Path) -> None:
    repo = hub.add(REPO, {CARD_NAME: b"# Theirs\n"})
    main = repo.branches["main"]
    commit = push_to_hub(trained(), REPO, create_pr=True)
    assert (repo.branches["main"], repo.branches["refs/pr/1"]) == (main, commit)
    assert repo.files(commit)[CARD_NAME].startswith(b"---\n") and b"# Theirs\n" in repo.files(commit)[CARD_NAME]
    added = push_to_hub(wake(trained()), REPO, branch="refs/pr/1")
    assert (repo.branches["main"], repo.branches["refs/pr/1"]) == (main, added)
    assert "refs/pr/2" not in repo.branches and not hub.asked(f"POST /api/models/{REPO}/branch")


def subfolders_hold_the_checkpoint(hub: LoopbackHub, tmp_path: Path) -> None:
    push_to_hub(trained(), REPO, subfolder="runs/best")
    push_to_hub(wake(trained()), REPO, subfolder="runs/last")
    files = hub.repos[REPO].files()
    folders = {f"runs/{run}/{name}" for run in ("best", "last") for name in (CONFIG_NAME, WEIGHTS_NAME)}
    assert set(files) == folders | {".gitattributes", CARD_NAME, "config.json"}
    fresh = base()
    aim.load_adapters(fresh, REPO, subfolder="runs/best")
    assert torch.equal(run(fresh), run(trained()))


def every_checkpoint_has_a_section_of_its_own(hub: LoopbackHub, tmp_path: Path) -> None:
    folders = ("a", "b--c/d", None)

    def sections() -> dict[str | None, str]:
        text = hub.repos[REPO].files()[CARD_NAME].decode()
        assert text.count("<!--") == 2 * text.count("AIM adapters for") and len(re.findall("^# ", text, re.M)) == 1
        found = {}
        for folder in folders:
            begin, end = section_marks(folder)
            assert text.count(begin) == text.count(end) <= 1
            if begin in text:
                found[folder] = text[text.index(begin) : text.index(end)]
        return found

    expected: dict[str | None, str] = {}
    for classes in (3, 4):  # made, then replaced
        for folder in folders:
            push_to_hub(trained(num_classes=classes), REPO, subfolder=folder)
            found = sections()
            assert f"| classes | {classes} |" in found[folder]
            assert (f'subfolder="{folder}"' in found[folder]) == (folder is not None)
            assert {**found, folder: ""} == {**expected, folder: ""}
            expected = found
    assert list(expected) == list(folders)


def adapters_go_by_name(hub: LoopbackHub, tmp_path: Path) -> None:
    model = trained(num_classes=3)
    aim.add_adapter(model, "other", aim.AIMConfig(num_frames=2, num_classes=7))
    push_to_hub(model, REPO, name="other")
    config = json.loads(hub.repos[REPO].files()[CONFIG_NAME])
    assert (config["num_frames"], config["num_classes"]) == (2, 7)
    assert "GMACs" not in hub.repos[REPO].files()[CARD_NAME].decode()  # of the adapter that runs, not of this one
    with aim.disable_adapters(model):
        push_to_hub(model, REPO, name="default")
    assert "GMACs" not in hub.repos[REPO].files()[CARD_NAME].decode()  # of the image model, which runs


def wrappers_leave_no_trace(hub: LoopbackHub, tmp_path: Path) -> None:
    push_to_hub(trained(), "me/plain")
    push_to_hub(torch.compile(trained(), backend="eager"), "me/compiled")
    plain, compiled = (hub.repos[name].files() for name in ("me/plain", "me/compiled"))
    state, other = load(plain[WEIGHTS_NAME]), load(compiled[WEIGHTS_NAME])
    assert state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)
    assert json.loads(plain[CONFIG_NAME]) == json.loads(compiled[CONFIG_NAME])


def failed_download_leaves_the_model_alone(hub: LoopbackHub, tmp_path: Path) -> None:
    push_to_hub(trained(), REPO)
    for model in (base(), wrapped()):
        before, was_wrapped = snapshot(model), aim.is_wrapped(model)
        for number, kind in enumerate(("500", "hang up", "drop", "other etag", "no etag", "other length", "403")):
            hub.faults[f" {WEIGHTS_NAME}"] = kind
            refused(model, cache_dir=tmp_path / f"{number} {was_wrapped}")
            hub.faults.clear()
        refused(model, revision="v9")
        refused(model, subfolder="none")
        refused(model, local_files_only=True, cache_dir=tmp_path / "empty")
        hub.repos[REPO].gated = True
        refused(model, cache_dir=tmp_path / "gated")
        hub.repos[REPO].gated = False
        assert_same(before, snapshot(model))
        assert aim.is_wrapped(model) is was_wrapped
        aim.load_adapters(model, REPO)


def refused(model: nn.Module, **arguments: Any) -> None:
    with pytest.raises(CheckpointError, match=f"{REPO}"):
        aim.load_adapters(model, REPO, **arguments)


SCENARIOS = [
    pushed_adapters_load_to_the_bit,
    card_says_what_was_pushed,
    code_of_the_card_runs_as_written,
    repository_of_ones_own_needs_no_name,
    readme_of_the_repository_is_added_to,
    readme_that_is_no_text_stops_the_push,
    readme_with_broken_metadata_stops_the_push,
    privacy_is_asked_for,
    branches_are_made_and_committed_to,
    pull_requests_are_opened_and_added_to,
    subfolders_hold_the_checkpoint,
    every_checkpoint_has_a_section_of_its_own,
    adapters_go_by_name,
    wrappers_leave_no_trace,
    failed_download_leaves_the_model_alone,
]


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_on_the_hub(name: str, on_the_hub: dict[str, str]) -> None:
    assert not on_the_hub[name], on_the_hub[name]
