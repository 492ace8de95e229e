"""`mixer-finetune soup`."""

from __future__ import annotations


def soup(run: str, *runs: str, output: str = "soup") -> int:
    """Average the weights of several runs into one model, as long as the dev split does not mind (a greedy soup).

    The runs must be of the same model, classes and dev split. The one that is best there comes first, and each other is
    kept if the average with it is no worse. What predicts with the soup costs what one model costs.

    Args:
        run: Run folder of a finished fit.
        *runs: More of them.
        output: Model folder to write; its soup.json says what is in it.

    Returns:
        The exit status.

    Raises:
        UserError: The runs do not go together, or have no dev split.
    """
    from mixer_finetune.engine.soup import soup as mix

    found = mix([run, *runs], output)
    metric = found["monitor"]
    print(
        f"{output}: {len(found['ingredients'])} of {len(found['runs'])} runs, dev {metric} {found['soup'][metric]:.2%}"
    )
    return 0
