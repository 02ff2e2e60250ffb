"""The command that puts a trained model on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aim_adapters.cli.models import BaseModel, load_trained
from aim_adapters.cli.output import Debug, Json, as_lines, command


def push(
    source: Annotated[Path, typer.Argument(help="Folder of a run, or of save_adapters.")],
    repo: Annotated[str, typer.Argument(help="user/name on the Hugging Face Hub; made if there is none.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Whether a new repository is private; by default as its owner has it."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be uploaded; the Hub is not asked.")
    ] = False,
    branch: Annotated[str | None, typer.Option(help="Branch to commit to, made if there is none.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    license: Annotated[str | None, typer.Option(help="For the model card, such as mit.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="For the model card: training data, by its name on the Hub. Repeatable.")
    ] = None,
    base_model: BaseModel = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Share a trained model on the Hub.

    Adapters, their config and a model card are committed together; the image model is not uploaded. Log in first, by
    `hf auth login` or HF_TOKEN. The exit code is 1 if the checkpoint is not sound.
    """
    with command(as_json=as_json, debug=debug) as output:
        from aim_adapters.checkpoint import inspect_checkpoint, push_to_hub
        from aim_adapters.errors import CheckpointError
        from aim_adapters.storage import CARD_NAME, COUNTED_NAME, require_inner_path, require_repo_id

        folder = source.expanduser()
        require_repo_id(repo)
        require_inner_path("--branch", branch)
        found = inspect_checkpoint(folder)
        if found.problems:
            raise CheckpointError(f"{folder} is not pushed: {found.problems[0]}")
        if not found.clip.get("labels"):
            output.note("warning", "it has no names of classes, so that predictions show their index")
        if dry_run:
            files = {**found.files, CARD_NAME: None, COUNTED_NAME: None}
            whose = {None: "as its owner has it", True: "private", False: "public"}[private]
            facts = {"repo": repo, "branch": branch or "main", "new_repository": whose, "files": files}
            lines = {
                "repository": repo,
                "branch": branch or "main",
                "if it is new": whose,
                **{name: f"{size:,} bytes" for name, size in found.files.items()},
                CARD_NAME: "model card; the text of an existing one is kept",
                COUNTED_NAME: "two lines, if there is none",
            }
            output.result(facts, f"{as_lines(lines)}\nnothing was uploaded")
            return
        output.step("building the model")
        model = load_trained(str(folder), base_model)
        output.step("uploading")
        commit = push_to_hub(
            model, repo, private=private, branch=branch, create_pr=create_pr, license=license, datasets=dataset or ()
        )
        output.result({"repo": repo, "commit": commit}, f"{repo} is at commit {commit}")
