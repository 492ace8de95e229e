"""`mixer-finetune push`."""

from __future__ import annotations


def push(
    run: str,
    repo_id: str,
    *,
    private: bool = False,
    revision: str = "main",
    create_pr: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> int:
    """Put a finished run's model on the Hugging Face Hub, as one commit.

    It holds weights, configuration, model card, pictures, recipe and results. Checkpoints, tokens, local paths and your
    images are not sent.

    Args:
        run: Run folder of a finished fit.
        repo_id: Repository, user/name; created where it does not exist.
        private: Make a new repository private.
        revision: Branch; created from main where it does not exist.
        create_pr: Open a pull request in place of a commit.
        force: Put the commit on top of ones that this run did not make, and push results of a part of the split.
        dry_run: Only say what would be sent.

    Returns:
        The exit status.

    Raises:
        UserError: The run folder is none, or the push can't be done.
    """
    from mixer_finetune.runs import RunFolder
    from mixer_finetune.sharing import push as pushing
    from mixer_finetune.texts import terminal

    options = {"private": private, "create_pr": create_pr, "force": force, "dry_run": dry_run}
    print(terminal(pushing.push(RunFolder.open(run), repo_id, revision=revision, **options)))
    return 0
